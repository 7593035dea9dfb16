"""Figures 2, 3 and 5, and the annotation budget's, as PNG and SVG bytes with their data."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chexseg_ray.pipeline import SweepPoint
from chexseg_ray.report.paper_tables import METHODS, init_name, network_words, shown_over
from chexseg_ray.report.readers import READER, Comparison
from chexseg_ray.report.results import FEW_PATIENTS, Estimate, SettingResult

_WORDS = {"weak_n": "{} weak", "num_expert": "{} experts", "architecture": "{}", "encoder": "{}"}
# Okabe and Ito's colours, distinct for the colour-blind
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PANELS = ("Pleural Effusion", "Consolidation", "Edema")  # of Figure 2, b to d

Point = tuple[Any, float, float, float, bool]  # x or group, mean, low, high, whether few patients carry it
Curves = dict[str, list[Point]]


@dataclass(frozen=True)
class Figure:
    """What a figure shows: panels of lines over a number, or of bars by group, {panel: {line or series: points}}; `over` says of the intervals
    what they are over."""

    name: str
    title: str
    x_label: str
    panels: Mapping[str, Mapping[str, Sequence[Point]]]
    over: str
    bars: bool = False

    def data(self) -> list[dict[str, Any]]:
        """Plain JSON values: one entry a point."""
        return [
            {"panel": panel, "line": line, "x": x, "iou": _finite(mean), "low": _finite(low), "high": _finite(high), "few_patients": few}
            for panel, lines in self.panels.items()
            for line, points in lines.items()
            for x, mean, low, high, few in points
        ]


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def figures(pathologies: Sequence[str], settings: Sequence[SettingResult], comparison: Comparison, expert_masks: int | None = None) -> list[Figure]:
    """Every figure that the study has something to show in; `expert_masks` is what a setting without num_expert uses, where it is known."""
    shown = [name for name in _PANELS if name in pathologies] or list(pathologies[:3])
    over_p = {"(a) mean IoU": curves(settings)} | {f"({'bcd'[i]}) {name}": curves(settings, pathologies.index(name)) for i, name in enumerate(shown)}
    over = shown_over(settings)
    out = [Figure("figure2_iou_over_p", "Figure 2: IoU over p", "p, the probability of an expert mask", over_p, over)]
    if inits := _init_bars(settings):
        out.append(Figure("figure3_initialisations", "Figure 3: encoder initialisations", "", inits, over, bars=True))
    if len(comparison.rivals) > 1:
        tasks = ("mean", *pathologies)
        bars = {
            rival.name: [(task, *_ends(rival.mean if task == "mean" else rival.pathologies[pathologies.index(task)])) for task in tasks]
            for rival in comparison.rivals
        }
        title = "Figure 5: radiologists and models" if comparison.rivals[0].name == READER else "Figure 5: the best of each kind (no radiologists)"
        of_reader = "; radiologists: over patients" if comparison.rivals[0].name == READER and over != "over patients" else ""
        out.append(Figure("figure5_radiologists", title, "", {"": bars}, over + of_reader, bars=True))
    if budget := budget_curves(settings, expert_masks):
        label = "expert masks that training and tuning may use (validation masks come on top)"
        out.append(Figure("miou_over_num_expert", "What the next expert mask is worth", label, {"mean IoU": budget}, over))
    return out


def _estimate(result: SettingResult, pathology: int | None) -> Estimate:
    return result.mean["pooled"] if pathology is None else result.pathologies["pooled"][pathology]


def _ends(own: Estimate) -> tuple[float, float, float, bool]:
    return own.mean, own.shown.low, own.shown.high, own.few


def curves(settings: Sequence[SettingResult], pathology: int | None = None) -> Curves:
    """{label: points} of pooled IoU over p; a p = 1 point, which has no method, closes every curve of its init.

    Where a study has settings with 0 < p < 1, only their curves are drawn: a point at p = 0 alone is no curve.
    """
    lines: dict[SweepPoint, list[SettingResult]] = {}
    ends: dict[SweepPoint, list[SettingResult]] = {}
    for result in _defined(settings, pathology):
        s = result.setting
        (ends if s.method is None else lines).setdefault(replace(s, p=0.0), []).append(result)
    for end, own in ends.items():
        of_its_init = [line for key, line in lines.items() if replace(key, method=None, weak_n=0) == end]
        for line in of_its_init or [lines.setdefault(end, [])]:
            line += own
    mixed = {key: line for key, line in lines.items() if any(0 < r.setting.p < 1 for r in line)}
    return _labelled(mixed or lines, "p", pathology)


def budget_curves(settings: Sequence[SettingResult], expert_masks: int | None) -> Curves:
    """{label: points} over num_expert: what the next expert mask is worth. Empty unless a study has several num_expert; one that is null
    stands at `expert_masks`."""
    lines: dict[SweepPoint, list[SettingResult]] = {}
    for result in _defined(settings, None):
        number = result.setting.num_expert or expert_masks
        if number is not None:
            placed = replace(result, setting=replace(result.setting, num_expert=number))
            lines.setdefault(replace(result.setting, num_expert=None), []).append(placed)
    return _labelled({key: line for key, line in lines.items() if len(line) > 1}, "num_expert", None)


def _defined(settings: Sequence[SettingResult], pathology: int | None) -> list[SettingResult]:
    return [result for result in settings if result.points and not math.isnan(_estimate(result, pathology).mean)]


def _labelled(lines: dict[SweepPoint, list[SettingResult]], axis: str, pathology: int | None) -> Curves:
    """Labels name method and init, and of the rest what tells the lines apart."""
    fields = ("p", "weak_n", "num_expert", "architecture", "encoder")
    telling = [name for name in fields if name != axis and len({getattr(key, name) for key in lines}) > 1]
    out = {}
    for key, line in lines.items():
        words = [
            METHODS.get(key.method or "", "expert"),
            init_name(key.init, [result for own in lines.values() for result in own]),
            *(_WORDS[name].format(getattr(key, name) or "all") for name in telling if name != "p"),
        ]
        words += [f"p = {key.p:g}"] if "p" in telling else []
        out[", ".join(words)] = sorted((float(getattr(r.setting, axis)), *_ends(_estimate(r, pathology))) for r in line)
    return out


def _init_bars(settings: Sequence[SettingResult]) -> dict[str, Curves]:
    """(a) fully supervised by init, (b) weakly supervised by init and method, of the largest weak set; empty unless there are several inits."""
    own = [s for s in _defined(settings, None) if s.setting.p in (0.0, 1.0)]
    largest = max((s.setting.weak_n for s in own if s.setting.p == 0), default=0)
    panels: dict[str, Any] = {}
    for result in own:
        s = result.setting
        if (s.p == 0 and s.weak_n != largest) or len({r.setting.init for r in own if (r.setting.p, r.setting.weak_n) == (s.p, s.weak_n)}) < 2:
            continue
        title = "(a) fully supervised" if s.p == 1 else f"(b) weakly supervised, {largest} weak images"
        words = ["expert masks" if s.method is None else METHODS[s.method], *([f"{s.num_expert} experts"] if s.num_expert else []), *network_words(s)]
        panels.setdefault(title, {}).setdefault(", ".join(words), []).append((init_name(s.init, own), *_ends(result.mean["pooled"])))
    return dict(sorted(panels.items()))


def draw(figure: Figure, level: float) -> dict[str, bytes]:
    """{"png": ..., "svg": ...}: panels side by side, at most two in a row; bars for the intervals."""
    from matplotlib import pyplot as plt

    count = len(figure.panels)
    columns = 1 if count == 1 else 2
    rows = -(-count // columns)
    wide = 9.6 if figure.bars and count == 1 else 6.4 if count == 1 else 10.4
    drawn, axes = plt.subplots(rows, columns, figsize=(wide, 3.9 * rows), layout="constrained", squeeze=False)
    names = dict.fromkeys(name for lines in figure.panels.values() for name in lines)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    for ax, (title, lines) in zip(axes.flat, figure.panels.items(), strict=False):
        ax.set_ylabel("IoU (pooled)")
        (_draw_bars if figure.bars else _draw_lines)(ax, lines, colours)
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel(figure.x_label)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3, axis="y")
    for ax in list(axes.flat)[count:]:
        ax.axis("off")
    legend = f"{100 * level:g} % intervals {figure.over}"
    if any(few for lines in figure.panels.values() for points in lines.values() for *_, few in points):
        legend += f"\n{'pale' if figure.bars else 'hollow'}: fewer than {FEW_PATIENTS} positive patients"
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        drawn.legend(
            list(handles.values()), list(handles), loc="outside upper left", ncols=4, frameon=False, fontsize=8, title=legend, title_fontsize=8
        )
    return figure_bytes(drawn)


def figure_bytes(figure: Any) -> dict[str, bytes]:
    """PNG and SVG of a matplotlib figure, which is closed; the same figure gives the same bytes."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "chexseg_ray"
    out = {}
    for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, **options)
        out[kind] = stream.getvalue()
    plt.close(figure)
    return out


def _bars(mean: float, low: float, high: float) -> tuple[float, float]:
    """Lengths below and above; NaN, which draws nothing, where there is no interval."""
    return (math.nan, math.nan) if math.isnan(low) else (max(0.0, mean - max(0.0, low)), max(0.0, high - mean))


def _draw_lines(ax: Any, lines: Mapping[str, Sequence[Point]], colours: Mapping[str, str]) -> None:
    width = max((x for line in lines.values() for x, *_ in line), default=0.0) or 1.0
    for i, (label, line) in enumerate(lines.items()):
        aside = 0.008 * width * (i - (len(lines) - 1) / 2)  # so that no bar hides another
        both = [_bars(mean, low, high) for _, mean, low, high, _ in line]
        x, means, few = [x + aside for x, *_ in line], [mean for _, mean, *_ in line], [own for *_, own in line]
        ax.errorbar(
            x, means, yerr=list(zip(*both, strict=True)), label=label, color=colours[label], marker="o", markersize=4, capsize=3, linewidth=1.5
        )
        hollow = [(a, b) for a, b, own in zip(x, means, few, strict=True) if own]
        ax.plot(*([list(axis) for axis in zip(*hollow, strict=True)] or ([], [])), "o", markersize=2.4, color="white", zorder=3)
    ax.set_xlim(-0.04 * width, 1.04 * width)
    _limit(ax, [row for line in lines.values() for row in line])


def _limit(ax: Any, rows: Sequence[Point]) -> None:
    """Room for the intervals; one that is very wide is cut off, not the others squeezed, and the axis says so."""
    means, highs = [mean for _, mean, *_ in rows if mean == mean], [high for *_, high, _ in rows if high == high]
    top = max(means, default=0.0)
    if top > 0:
        ax.set_ylim(0, min(1.0, 1.9 * top, 1.08 * max([1.1 * top, *highs])))
    if any(high > ax.get_ylim()[1] for high in highs):
        ax.set_ylabel("IoU (pooled); wide intervals are cut off")


def _draw_bars(ax: Any, series: Mapping[str, Sequence[Point]], colours: Mapping[str, str]) -> None:
    groups = list(dict.fromkeys(group for points in series.values() for group, *_ in points))
    each = 0.8 / max(1, len(series))
    for i, (label, points) in enumerate(series.items()):
        own = [(groups.index(group) + each * (i - (len(series) - 1) / 2), mean, *rest) for group, mean, *rest in points if mean == mean]
        both = [_bars(mean, low, high) for _, mean, low, high, _ in own]
        errors = list(zip(*both, strict=True)) if own else None
        x, means, style = [x for x, *_ in own], [mean for _, mean, *_ in own], {"linewidth": 1}
        drawn = ax.bar(x, means, each, yerr=errors, label=label, color=colours[label], capsize=2, error_kw=style)
        for bar, (*_, few) in zip(drawn, own, strict=True):
            bar.set_alpha(0.45 if few else None)
    many = sum(map(len, groups)) > 45  # characters, side by side
    ax.set_xticks(range(len(groups)), groups, rotation=35 if many else 0, ha="right" if many else "center", fontsize=8)
    _limit(ax, [row for points in series.values() for row in points])
