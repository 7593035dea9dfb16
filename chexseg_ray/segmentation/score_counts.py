"""Score histograms on a GPU, equal to evaluation.thresholds.ScoreHistogram's."""

import torch


def score_counts(
    scores: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, thresholds: torch.Tensor
) -> torch.Tensor:
    """Count pixels between neighbouring thresholds, for each pathology and for true and other pixels.

    Args:
        scores: float32 [B, K, S, S].
        truth: bool [B, K, S, S].
        inside: bool [B, S, S], the pixels that count.
        thresholds: float32 [T], increasing.

    Returns:
        int64 [K, 2, T + 1] on the scores' device, what ScoreHistogram.add would add to its counts.
    """
    pathologies, bins = scores.shape[1], len(thresholds) + 1
    first = 2 * bins * torch.arange(pathologies, device=scores.device).view(1, -1, 1, 1)
    index = torch.bucketize(scores, thresholds) + bins * truth + first
    weights = inside.unsqueeze(1).expand_as(index).to(torch.int64)
    counts = torch.zeros(2 * bins * pathologies, dtype=torch.int64, device=scores.device)
    return counts.scatter_add_(0, index.flatten(), weights.flatten()).view(pathologies, 2, bins)
