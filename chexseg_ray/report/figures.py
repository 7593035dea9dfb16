"""Figures 2, 3 and 5, and that of the annotation budget, as PNG and SVG bytes with their data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chexseg_ray.config.axes import AXES, SweepPoint, extra_words, value_words
from chexseg_ray.config.methods import method_title
from chexseg_ray.report.drawing import figure_bytes, pyplot
from chexseg_ray.report.paper_tables import init_name, network_texts, shown_over
from chexseg_ray.report.readers import READER, Comparison
from chexseg_ray.report.results import FEW_PATIENTS, Estimate, SettingResult

# Okabe and Ito's colours, which colour-blind readers can tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PANELS = ("Pleural Effusion", "Consolidation", "Edema")  # of Figure 2, b to d

Point = tuple[Any, float, float, float, bool]  # x or group, mean, low, high, whether few patients carry it
Curves = dict[str, list[Point]]


@dataclass(frozen=True)
class Figure:
    """What a figure shows: panels of lines over a number, or of bars by group.

    Args:
        name: of its files.
        title: its heading on the page.
        x_label: label of the x axis, for lines.
        panels: {panel: {line or series of bars: points}}.
        over: what the intervals are over, for the legend.
        bars: whether it shows bars.
    """

    name: str
    title: str
    x_label: str
    panels: Mapping[str, Mapping[str, Sequence[Point]]]
    over: str
    bars: bool = False

    def data(self) -> list[dict[str, Any]]:
        """The points as plain JSON values, one entry per point; NaN is null."""
        entries = []
        for panel, lines in self.panels.items():
            for line, points in lines.items():
                for x, mean, low, high, few in points:
                    entry = {
                        "panel": panel,
                        "line": line,
                        "x": x,
                        "iou": _finite(mean),
                        "low": _finite(low),
                        "high": _finite(high),
                        "few_patients": few,
                    }
                    entries.append(entry)
        return entries


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def figures(
    pathologies: Sequence[str],
    settings: Sequence[SettingResult],
    comparison: Comparison,
    expert_masks: int | None = None,
) -> list[Figure]:
    """Every figure for which the study has results.

    Args:
        pathologies: K names.
        settings: all settings.
        comparison: of models with radiologists.
        expert_masks: what a setting without num_expert uses; None where it is not known.
    """
    panels = {"(a) mean IoU": curves(settings)}
    shown = [name for name in _PANELS if name in pathologies] or list(pathologies[:3])
    for letter, name in zip("bcd", shown, strict=False):
        panels[f"({letter}) {name}"] = curves(settings, pathologies.index(name))
    over = shown_over(settings)
    out = [Figure("figure2_iou_over_p", "Figure 2: IoU over p", "p, the probability of an expert mask", panels, over)]
    inits = _init_bars(settings)
    if inits:
        out.append(Figure("figure3_initialisations", "Figure 3: encoder initialisations", "", inits, over, bars=True))
    if len(comparison.rivals) > 1:
        out.append(_rivals_figure(pathologies, comparison, over))
    budget = budget_curves(settings, expert_masks)
    if budget:
        label = "expert masks that training and tuning may use (validation masks come on top)"
        panels = {"mean IoU": budget}
        out.append(Figure("miou_over_num_expert", "What the next expert mask is worth", label, panels, over))
    return out


def _rivals_figure(pathologies: Sequence[str], comparison: Comparison, over: str) -> Figure:
    """Figure 5, bars of the mean and of each pathology; `over` is what the models' intervals are over."""
    bars = {}
    for rival in comparison.rivals:
        estimates = {"mean": rival.mean}
        for task in pathologies:
            estimates[task] = rival.pathologies[pathologies.index(task)]
        bars[rival.name] = [(task, *_ends(estimate)) for task, estimate in estimates.items()]
    title = "Figure 5: the best of each kind (no radiologists)"
    if comparison.rivals[0].name == READER:
        title = "Figure 5: radiologists and models"
        if over != "over patients":
            over += "; radiologists: over patients"
    return Figure("figure5_radiologists", title, "", {"": bars}, over, bars=True)


def _estimate(result: SettingResult, pathology: int | None) -> Estimate:
    """The pooled estimate of a pathology by its index, or of the mean."""
    return result.mean["pooled"] if pathology is None else result.pathologies["pooled"][pathology]


def _ends(estimate: Estimate) -> tuple[float, float, float, bool]:
    """Mean, low and high of the shown interval, and whether few patients carry it: a Point without its x."""
    return estimate.mean, estimate.shown.low, estimate.shown.high, estimate.few


def curves(settings: Sequence[SettingResult], pathology: int | None = None) -> Curves:
    """Pooled IoU over p; a setting with p = 1, which has no method, is the last point of every curve of its init.

    If a study has settings with 0 < p < 1, only their curves are drawn: a single point at p = 0 is not a curve.

    Args:
        settings: all settings.
        pathology: its index; None for the mean.

    Returns:
        {label: points}.
    """
    lines: dict[SweepPoint, list[SettingResult]] = {}
    last_points: dict[SweepPoint, list[SettingResult]] = {}
    for result in _defined(settings, pathology):
        group = last_points if result.setting.method is None else lines
        group.setdefault(replace(result.setting, p=0.0), []).append(result)
    for end, results in last_points.items():
        lines_of_init = [line for key, line in lines.items() if replace(key, p=1.0).canonical() == replace(end, p=1.0)]
        for line in lines_of_init or [lines.setdefault(end, [])]:
            line += results
    mixed = {key: line for key, line in lines.items() if any(0 < result.setting.p < 1 for result in line)}
    return _labelled(mixed or lines, "p", pathology)


def budget_curves(settings: Sequence[SettingResult], expert_masks: int | None) -> Curves:
    """Pooled mean IoU over num_expert: what the next expert mask is worth.

    Args:
        settings: all settings.
        expert_masks: the x of a setting whose num_expert is null; None leaves it out.

    Returns:
        {label: points}; empty unless the study has several num_expert.
    """
    lines: dict[SweepPoint, list[SettingResult]] = {}
    for result in _defined(settings, None):
        number = result.setting.num_expert or expert_masks
        if number is not None:
            numbered = replace(result, setting=replace(result.setting, num_expert=number))
            lines.setdefault(replace(result.setting, num_expert=None), []).append(numbered)
    return _labelled({key: line for key, line in lines.items() if len(line) > 1}, "num_expert", None)


def _defined(settings: Sequence[SettingResult], pathology: int | None) -> list[SettingResult]:
    """The settings with a built trial that define the pathology, or the mean."""
    return [result for result in settings if result.points and not math.isnan(_estimate(result, pathology).mean)]


def _labelled(lines: dict[SweepPoint, list[SettingResult]], axis: str, pathology: int | None) -> Curves:
    """Curves over an axis. Labels give method and init, and the values of the other axes on which the lines differ."""
    others = [row.name for row in AXES if row.name not in ("method", "init", axis)]
    differing = [name for name in others if len({getattr(key, name) for key in lines}) > 1]
    results = [result for line in lines.values() for result in line]
    labelled = {}
    for key, line in lines.items():
        words = [method_title(key.method), init_name(key.init, results)]
        words += [value_words(name, key) for name in differing]
        points = [(float(getattr(result.setting, axis)), *_ends(_estimate(result, pathology))) for result in line]
        labelled[", ".join(words)] = sorted(points)
    return labelled


def _init_bars(settings: Sequence[SettingResult]) -> dict[str, Curves]:
    """The panels of Figure 3: (a) fully supervised by init, (b) weakly supervised by init and method.

    Panel b shows the largest weak set. A panel is missing where there is only one init.
    """
    results = [result for result in _defined(settings, None) if result.setting.p in (0.0, 1.0)]
    largest = max((result.setting.weak_n for result in results if result.setting.p == 0), default=0)
    inits: dict[tuple[float, int], set[str]] = {}
    for result in results:
        inits.setdefault((result.setting.p, result.setting.weak_n), set()).add(result.setting.init)
    panels: dict[str, Any] = {}
    for result in results:
        setting = result.setting
        is_smaller = setting.p == 0 and setting.weak_n != largest
        if is_smaller or len(inits[setting.p, setting.weak_n]) < 2:
            continue
        title = "(a) fully supervised" if setting.p == 1 else f"(b) weakly supervised, {largest} weak images"
        words = ["expert masks" if setting.method is None else method_title(setting.method)]
        if setting.num_expert:
            words.append(f"{setting.num_expert} experts")
        words += [*network_texts(setting), *extra_words(setting)]
        bar = (init_name(setting.init, results), *_ends(result.mean["pooled"]))
        panels.setdefault(title, {}).setdefault(", ".join(words), []).append(bar)
    return dict(sorted(panels.items()))


def draw(figure: Figure, level: float) -> dict[str, bytes]:
    """Draw a figure: panels side by side, at most two in a row, with error bars for the intervals.

    Args:
        figure: to draw.
        level: coverage of the intervals, for the legend.

    Returns:
        {"png": ..., "svg": ...}.
    """
    plt = pyplot()
    count = len(figure.panels)
    columns = 1 if count == 1 else 2
    rows = -(-count // columns)
    width = 10.4
    if count == 1:
        width = 9.6 if figure.bars else 6.4
    drawn, axes = plt.subplots(rows, columns, figsize=(width, 3.9 * rows), layout="constrained", squeeze=False)
    names = dict.fromkeys(name for lines in figure.panels.values() for name in lines)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    draw_panel = _draw_bars if figure.bars else _draw_lines
    for ax, (title, lines) in zip(axes.flat, figure.panels.items(), strict=False):
        ax.set_ylabel("IoU (pooled)")
        draw_panel(ax, lines, colours)
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
            list(handles.values()),
            list(handles),
            loc="outside upper left",
            ncols=4,
            frameon=False,
            fontsize=8,
            title=legend,
            title_fontsize=8,
        )
    return figure_bytes(drawn)


def _bar_lengths(mean: float, low: float, high: float) -> tuple[float, float]:
    """Lengths of an error bar below and above the mean; NaN, which draws nothing, where there is no interval."""
    if math.isnan(low):
        return math.nan, math.nan
    return max(0.0, mean - max(0.0, low)), max(0.0, high - mean)


def _draw_lines(ax: Any, lines: Mapping[str, Sequence[Point]], colours: Mapping[str, str]) -> None:
    """Draw one panel of lines; markers are hollow where few patients carry the mean."""
    width = max((x for line in lines.values() for x, *_ in line), default=0.0) or 1.0
    for i, (label, line) in enumerate(lines.items()):
        shift = 0.008 * width * (i - (len(lines) - 1) / 2)  # so that no error bar hides another
        errors = [_bar_lengths(mean, low, high) for _, mean, low, high, _ in line]
        x, means = [x + shift for x, *_ in line], [mean for _, mean, *_ in line]
        ax.errorbar(
            x,
            means,
            yerr=list(zip(*errors, strict=True)),
            label=label,
            color=colours[label],
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.5,
        )
        hollow = [(a, mean) for a, mean, (*_, few) in zip(x, means, line, strict=True) if few]
        hollow_x, hollow_means = [a for a, _ in hollow], [mean for _, mean in hollow]
        ax.plot(hollow_x, hollow_means, "o", markersize=2.4, color="white", zorder=3)
    ax.set_xlim(-0.04 * width, 1.04 * width)
    _set_y_limit(ax, [point for line in lines.values() for point in line])


def _set_y_limit(ax: Any, points: Sequence[Point]) -> None:
    """Leave room for the intervals; a very wide one is cut off, and the label of the axis reports it."""
    means = [mean for _, mean, *_ in points if not math.isnan(mean)]
    highs = [high for *_, high, _ in points if not math.isnan(high)]
    top = max(means, default=0.0)
    if top > 0:
        ax.set_ylim(0, min(1.0, 1.9 * top, 1.08 * max([1.1 * top, *highs])))
    if any(high > ax.get_ylim()[1] for high in highs):
        ax.set_ylabel("IoU (pooled); wide intervals are cut off")


def _draw_bars(ax: Any, series: Mapping[str, Sequence[Point]], colours: Mapping[str, str]) -> None:
    """Draw one panel of bars by group, one bar per series; bars are pale where few patients carry the mean."""
    groups = list(dict.fromkeys(group for points in series.values() for group, *_ in points))
    width = 0.8 / max(1, len(series))
    for i, (label, points) in enumerate(series.items()):
        shift = width * (i - (len(series) - 1) / 2)
        defined = [point for point in points if not math.isnan(point[1])]
        x, means = [groups.index(group) + shift for group, *_ in defined], [mean for _, mean, *_ in defined]
        errors = [_bar_lengths(mean, low, high) for _, mean, low, high, _ in defined]
        yerr = list(zip(*errors, strict=True)) if defined else None
        style = {"linewidth": 1}
        drawn = ax.bar(x, means, width, yerr=yerr, label=label, color=colours[label], capsize=2, error_kw=style)
        for bar, (*_, few) in zip(drawn, defined, strict=True):
            bar.set_alpha(0.45 if few else None)
    is_crowded = sum(map(len, groups)) > 45  # characters, side by side
    rotation, alignment = (35, "right") if is_crowded else (0, "center")
    ax.set_xticks(range(len(groups)), groups, rotation=rotation, ha=alignment, fontsize=8)
    _set_y_limit(ax, [point for points in series.values() for point in points])
