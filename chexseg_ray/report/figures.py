"""Figures as PNG and SVG bytes."""

import io
import math
from collections.abc import Sequence

from chexseg_ray.report.results import SettingResult

# Okabe and Ito's colours, distinct for the colour-blind
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def curves(settings: Sequence[SettingResult], aggregation: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """{label: [(p, mean, low, high)]} of mIoU over p; a p = 1 point, which has no method, closes every curve of its init."""
    lines: dict[tuple[str, str, int, int | None], list[tuple[float, float, float, float]]] = {}
    ends: dict[tuple[str, int | None], tuple[float, float, float, float]] = {}
    for result in settings:
        s, mean = result.setting, result.mean[aggregation]
        if math.isnan(mean.mean):
            continue
        row = (s.p, mean.mean, mean.low, mean.high)
        if s.method is None:
            ends[(s.init, s.num_expert)] = row
        else:
            lines.setdefault((s.method, s.init, s.weak_n, s.num_expert), []).append(row)
    for (init, num_expert), row in ends.items():
        own = [line for key, line in lines.items() if (key[1], key[3]) == (init, num_expert)]
        for line in own or [lines.setdefault(("expert", init, 0, num_expert), [])]:
            line.append(row)
    out = {}
    for (method, init, weak_n, num_expert), line in lines.items():
        label = f"{method}, {init}" + (f", {weak_n} weak" if weak_n else "") + (f", {num_expert} experts" if num_expert else "")
        out[label] = sorted(line)
    return out


def miou_over_p(settings: Sequence[SettingResult], aggregation: str, level: float) -> dict[str, bytes]:
    """mIoU over p, a line a method and initialisation, bars for the interval: {"png": ..., "svg": ...}."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "chexseg_ray"
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    lines = curves(settings, aggregation)
    for i, (label, line) in enumerate(lines.items()):
        aside = 0.008 * (i - (len(lines) - 1) / 2)  # so that no bar hides another
        p, mean = [row[0] + aside for row in line], [row[1] for row in line]
        below = [0.0 if math.isnan(low) else max(0.0, m - low) for _, m, low, _ in line]
        above = [0.0 if math.isnan(high) else max(0.0, high - m) for _, m, _, high in line]
        colour = _COLOURS[i % len(_COLOURS)]
        axes.errorbar(p, mean, yerr=[below, above], label=label, color=colour, marker="o", capsize=3, linewidth=1.6)
    axes.set_xlabel("p, the probability of an expert mask")
    axes.set_ylabel(f"mIoU ({aggregation.replace('_', ' ')})")
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, title=f"{level:.0%} t interval over trials", title_fontsize=8)
    out = {}
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, **options)
        out[kind] = stream.getvalue()
    plt.close(figure)
    return out
