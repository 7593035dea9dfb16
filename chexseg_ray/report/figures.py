"""Figures as PNG and SVG bytes."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace

from chexseg_ray.pipeline import SweepPoint
from chexseg_ray.report.results import SettingResult

_WORDS = {"p": "p = {:g}", "weak_n": "{} weak", "num_expert": "{} experts", "architecture": "{}", "encoder": "{}"}
# Okabe and Ito's colours, distinct for the colour-blind
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


Curves = dict[str, list[tuple[float, float, float, float]]]


def curves(settings: Sequence[SettingResult], aggregation: str) -> Curves:
    """{label: [(p, mean, low, high)]} of mIoU over p; a p = 1 point, which has no method, closes every curve of its init.

    Where a study has settings with 0 < p < 1, only their curves are drawn: a point at p = 0 alone is no curve.
    """
    lines: dict[SweepPoint, list[SettingResult]] = {}
    ends: dict[SweepPoint, list[SettingResult]] = {}
    for result in _defined(settings, aggregation):
        s = result.setting
        (ends if s.method is None else lines).setdefault(replace(s, p=0.0), []).append(result)
    for end, own in ends.items():
        of_its_init = [line for key, line in lines.items() if replace(key, method=None, weak_n=0) == end]
        for line in of_its_init or [lines.setdefault(end, [])]:
            line += own
    mixed = {key: line for key, line in lines.items() if any(0 < r.setting.p < 1 for r in line)}
    return _labelled(mixed or lines, "p", aggregation)


def budget_curves(settings: Sequence[SettingResult], aggregation: str) -> Curves:
    """{label: [(num_expert, mean, low, high)]}: what the next expert mask is worth. Empty unless a study has several num_expert."""
    lines: dict[SweepPoint, list[SettingResult]] = {}
    for result in _defined(settings, aggregation):
        if result.setting.num_expert is not None:
            lines.setdefault(replace(result.setting, num_expert=None), []).append(result)
    return _labelled({key: line for key, line in lines.items() if len(line) > 1}, "num_expert", aggregation)


def _defined(settings: Sequence[SettingResult], aggregation: str) -> list[SettingResult]:
    return [result for result in settings if not math.isnan(result.mean[aggregation].mean)]


def _labelled(lines: dict[SweepPoint, list[SettingResult]], axis: str, aggregation: str) -> Curves:
    """Labels name method and init, and of the rest what tells the lines apart."""
    fields = ("p", "weak_n", "num_expert", "architecture", "encoder")
    telling = [name for name in fields if name != axis and len({getattr(key, name) for key in lines}) > 1]
    out = {}
    for key, line in lines.items():
        words = [key.method or "expert", key.init, *(_WORDS[name].format(getattr(key, name)) for name in telling)]
        means = [(float(getattr(r.setting, axis)), r.mean[aggregation]) for r in line]
        out[", ".join(words)] = sorted((x, mean.mean, mean.low, mean.high) for x, mean in means)
    return out


def draw_curves(lines: Curves, x_label: str, aggregation: str, level: float) -> dict[str, bytes]:
    """mIoU over a number, a line each, bars for the interval: {"png": ..., "svg": ...}."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "chexseg_ray"
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    width = max((x for line in lines.values() for x, *_ in line), default=1.0)
    for i, (label, line) in enumerate(lines.items()):
        aside = 0.008 * width * (i - (len(lines) - 1) / 2)  # so that no bar hides another
        p, mean = [row[0] + aside for row in line], [row[1] for row in line]
        below = [0.0 if math.isnan(low) else max(0.0, m - low) for _, m, low, _ in line]
        above = [0.0 if math.isnan(high) else max(0.0, high - m) for _, m, _, high in line]
        colour = _COLOURS[i % len(_COLOURS)]
        axes.errorbar(p, mean, yerr=[below, above], label=label, color=colour, marker="o", capsize=3, linewidth=1.6)
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"mIoU ({aggregation.replace('_', ' ')})")
    axes.set_xlim(-0.04 * width, 1.04 * width)
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
