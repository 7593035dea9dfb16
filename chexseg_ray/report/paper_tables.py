"""Tables 1 and 2 in the paper's layout."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from chexseg_ray.config.axes import PAPER_NETWORK, SweepPoint, extra_words
from chexseg_ray.config.methods import method_title
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.evaluation.intervals import t_interval
from chexseg_ray.report.cells import Cell, Links, Table
from chexseg_ray.report.paper import table_1_value, table_2_value
from chexseg_ray.report.results import Estimate, SettingResult
from chexseg_ray.report.text import DAGGER, STAR, ends, marked, number

INITS = {"random": "Random", "imagenet": "ImageNet", "moco": "MoCo-CXR", "chexpert": "CheXpert"}


def table_1(config: StudyConfig, settings: Sequence[SettingResult], links: Links) -> list[Table]:
    """Pooled IoU by task and method over p.

    Args:
        config: of the study.
        settings: all settings.
        links: anchors of the settings.

    Returns:
        One table for each init, network and number of experts that has a setting with 0 < p < 1.
    """
    keys = list(dict.fromkeys(_table_key(s.setting) for s in settings if 0 < s.setting.p < 1))
    tables = []
    for i, key in enumerate(keys):
        results = [s for s in settings if _table_key(s.setting) == key]
        columns = sorted({(s.setting.p, s.setting.weak_n) for s in results})
        has_several_sizes = len({weak_n for _, weak_n in columns if weak_n}) > 1
        names = [f"p = {p:g}" + (f", {n} weak" if has_several_sizes and n else "") for p, n in columns]
        lines = list(dict.fromkeys(_line_key(s.setting) for s in results if s.setting.p < 1))
        found = {(_line_key(s.setting), s.setting.p, s.setting.weak_n): s for s in results}
        rows = []
        for task in ("mean", *sorted(config.data.pathologies)):
            for line in lines:
                in_columns = [found.get((line if p < 1 else _line_key(key), p, n)) for p, n in columns]
                cells = [_iou_cell(config, result, task, links) for result in in_columns]
                words = [word for word in extra_words(line) if word not in extra_words(key)]
                label = ", ".join([method_title(line.method), *words])
                rows.append((Cell("Mean IoU" if task == "mean" else task), Cell(label), *cells))
        init = init_name(key.init, settings)
        title = "Table 1: semi-supervised segmentation"
        if len(keys) > 1:
            experts = [f"{key.num_expert} experts"] if key.num_expert else []
            title = ", ".join([title, init, *experts, *network_texts(key), *extra_words(key)])
        network = f"{key.architecture} on {key.encoder}"
        text = f"Pooled IoU, encoder {init}, {network}; intervals {shown_over(results)}. {STAR}"
        name = "table1" if i == 0 else f"table1_{i + 1}"
        tables.append(Table(name, title, text, ("Task", "Method", *names), 2, tuple(rows)))
    return tables


def _table_key(setting: SweepPoint) -> SweepPoint:
    """What all settings of one Table 1 share: their setting at p = 1."""
    return replace(setting, p=1.0).canonical()


def _line_key(setting: SweepPoint) -> SweepPoint:
    """What all settings of one line of a Table 1 share, whose columns are p and weak_n."""
    return replace(setting, p=0.0, weak_n=0)


def _iou_cell(config: StudyConfig, result: SettingResult | None, task: str, links: Links) -> Cell:
    """A setting's pooled IoU of a pathology, or of the `mean`; empty where the study has no such setting."""
    if result is None:
        return Cell("")
    if not result.points:
        return Cell("–", "not built")
    if task == "mean":
        estimate = result.mean["pooled"]
    else:
        estimate = result.pathologies["pooled"][config.data.pathologies.index(task)]
    paper = table_1_value(config, result.setting, task)
    return Cell(marked(estimate), partial_text(result) + ends(estimate.shown), links[result.setting], paper)


def partial_text(result: SettingResult) -> str:
    """A note where only some of a setting's trials are built, such as `2 of 3 trials: `; else empty.

    Args:
        result: of the setting.
    """
    return "" if result.trials == result.planned else f"{result.trials} of {result.planned} trials: "


def init_name(init: str, among: Iterable[SettingResult]) -> str:
    """The paper's name of an initialisation; that of a file is its name, with as many folders as make it unique.

    Args:
        init: a value of the axis `init`.
        among: the settings that the name must tell apart.
    """
    if init in INITS:
        return INITS[init]
    parts = init.rstrip("/").split("/")
    others = [other.rstrip("/").split("/") for other in {result.setting.init for result in among} - {init}]
    length = next((n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others)), len(parts))
    return "/".join(parts[-length:])


def shown_over(settings: Iterable[SettingResult]) -> str:
    """What the shown intervals are over, as text.

    Args:
        settings: those that are shown.
    """
    is_single = {result.planned == 1 for result in settings}
    if False not in is_single:
        return "over patients"
    return "over trials and patients" + (" (one trial: over patients)" if True in is_single else "")


def network_texts(setting: SweepPoint) -> list[str]:
    """`architecture/encoder` where the network is not the paper's; else nothing.

    Args:
        setting: a point.
    """
    return [] if setting.has_paper_network else [setting.network]


def table_2(config: StudyConfig, settings: Sequence[SettingResult], links: Links) -> list[Table]:
    """Weakly supervised (p = 0) mIoU by encoder initialisation, size of the weak set and method.

    As in the paper, ± is half of Student's t interval over trials.

    Args:
        config: of the study.
        settings: all settings.
        links: anchors of the settings.

    Returns:
        One table; none where no setting has p = 0.
    """
    results = [s for s in settings if s.setting.p == 0]
    if not results:
        return []
    methods = list(dict.fromkeys(str(s.setting.method) for s in results))
    keys = dict.fromkeys(replace(s.setting, method=None) for s in results)
    order = [*INITS]

    def rank(key: SweepPoint) -> tuple[str, str, int, str, int]:
        """By network, then inits in the paper's order with files last, then sizes."""
        init_rank = order.index(key.init) if key.init in order else len(order)
        return key.architecture, key.encoder, init_rank, key.init, key.weak_n

    rows = []
    for key in sorted(keys, key=rank):
        found = {s.setting.method: s for s in results if replace(s.setting, method=None) == key}
        encoder = f"{key.encoder}-{init_name(key.init, results)}"
        if key.architecture != PAPER_NETWORK[0]:
            encoder += f", {key.architecture}"
        encoder = ", ".join([encoder, *extra_words(key)])
        labels = Cell(encoder), Cell(str(key.weak_n)), Cell(str(key.num_expert or "all"))
        rows.append((*labels, *(_plus_minus_cell(config, found.get(method), links) for method in methods)))
    text = (
        "Pooled mIoU at p = 0, ± half of Student's t interval over trials, as the paper prints it. Experts: masks that "
        "thresholds were tuned on."
    )
    names = ("Encoder", "Train set size", "Experts", *(method_title(method) for method in methods))
    return [Table("table2", "Table 2: weakly supervised segmentation", text, names, 3, tuple(rows))]


def _plus_minus_cell(config: StudyConfig, result: SettingResult | None, links: Links) -> Cell:
    """A setting's pooled mIoU with its ± over trials; empty where the study has no such setting."""
    if result is None:
        return Cell("")
    if not result.points:
        return Cell("–", "not built")
    # The interval is not clipped to [0, 1], which would make its half smaller
    interval = t_interval([*result.values("pooled").values()], config.report.interval_level)
    half = f" ± {(interval.high - interval.low) / 2:.5f}" if not interval.reason else ""
    note = (partial_text(result) + interval.reason).removesuffix(": ")
    paper = table_2_value(config, result.setting)
    mark = DAGGER if result.mean["pooled"].whole_image else ""
    return Cell(number(interval.mean) + half + mark, note, links[result.setting], paper)


def estimate_cell(estimate: Estimate, link: str) -> Cell:
    """Mean, mark and interval of an estimate; a dash and the reason where it is undefined.

    Args:
        estimate: to show.
        link: the anchor of its records.
    """
    if math.isnan(estimate.mean):
        return Cell("–", estimate.trials.reason)
    return Cell(marked(estimate), ends(estimate.shown), link)
