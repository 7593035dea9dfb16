"""The grid of segmentation thresholds: from the config to the choice, and into the step's address."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from report.fakes import graph
from studies import tiny

from chexseg_ray.stages.segmentation import MaskedSet, Scoring, Settings


class Pixels:
    """Stands in for the rows of a pool: any image is black, and shows every pathology in its left half."""

    def __init__(self, value: npt.NDArray[Any]) -> None:
        self.value = value

    def gather(self, ids: list[str]) -> npt.NDArray[Any]:
        return np.stack([self.value] * len(ids))


@pytest.mark.parametrize(("grid", "threshold"), [("paper", 0.0), ("fine", 0.02)])
def test_scores_below_the_papers_first_step_are_told_apart_by_the_fine_grid(
    grid: str, threshold: float, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = graph(tiny(tmp_path, f"segmentation.threshold_grid={grid}")).points[0][1].inputs["segmentation"]
    assert step.config.get("threshold_grid", "paper") == grid
    settings = Settings(**step.config)
    size, count = settings.size, len(settings.pathologies)
    truth = np.zeros((count, size, size), dtype=np.uint8)
    truth[:, :, : size // 2] = 1
    scores = np.where(truth == 1, 0.03, 0.015).astype(np.float32)
    monkeypatch.setattr(
        "chexseg_ray.stages.segmentation.predict", lambda model, pixels, *_: np.stack([scores] * len(pixels))
    )
    ids = [f"x{i}" for i in range(6)]
    packed: Any = Pixels(np.packbits(truth.reshape(count, -1), axis=1))
    pixels: Any = Pixels(np.zeros((size, size), dtype=np.uint8))
    images = MaskedSet(ids, pixels, packed, dict.fromkeys(ids, (size, size)))
    model: Any = None
    scoring = Scoring(model, settings, "imagenet", torch.device("cpu"))
    chosen = scoring.thresholds(None, images)
    assert {(entry["threshold"], entry["source"]) for entry in chosen.values()} == {
        (float(np.float32(threshold)), "validation")
    }
    assert scoring.validation_miou(images) == (1.0 if grid == "fine" else 0.5)


def test_the_grid_is_in_the_address_unless_it_is_the_papers(tmp_path: Any) -> None:
    plain, paper, fine = (
        [step.address for step in graph(tiny(tmp_path, *overrides)).steps()]
        for overrides in ([], ["segmentation.threshold_grid=paper"], ["segmentation.threshold_grid=fine"])
    )
    assert plain == paper
    changed = {address.split("/")[0] for address in set(fine) - set(plain)}
    assert changed == {"segmentation", "evaluation"}
