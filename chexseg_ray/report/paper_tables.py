"""Tables 1 and 2 in the paper's layout, the radiologists' and the contrasts' tables: cells that know where their number comes from."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from chexseg_ray.config import StudyConfig
from chexseg_ray.evaluation.intervals import t_interval
from chexseg_ray.pipeline import PAPER_NETWORK, SweepPoint
from chexseg_ray.report.paper import table_1_value, table_2_value
from chexseg_ray.report.results import Estimate, SettingResult
from chexseg_ray.report.tables import STAR, ends, marked, number

METHODS = {"gradcam": "CAM", "irnet": "IRNet"}
INITS = {"random": "Random", "imagenet": "ImageNet", "moco": "MoCo-CXR", "chexpert": "CheXpert"}


@dataclass(frozen=True)
class Cell:
    """A text; below it a smaller one, the anchor of the records that it comes from, and the paper's own number."""

    text: str
    small: str = ""
    link: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """`name` is its file's; the first `labels` columns are text."""

    name: str
    title: str
    text: str
    header: tuple[str, ...]
    labels: int
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> bytes:
        """The layout with one column a number; where cells have a smaller text or the paper's number, further columns at the right."""
        small = any(cell.small for row in self.rows for cell in row[self.labels :])
        paper = any(cell.paper for row in self.rows for cell in row[self.labels :])
        values = self.header[self.labels :]
        names = [*self.header, *([f"{name} interval" for name in values] if small else []), *([f"{name} paper" for name in values] if paper else [])]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        for row in self.rows:
            own = row[self.labels :]
            more = [*([cell.small for cell in own] if small else []), *([cell.paper for cell in own] if paper else [])]
            writer.writerow([*(cell.text for cell in row), *more])
        return stream.getvalue().encode()

    def markdown(self) -> str:
        """A GitHub table; the smaller text and the paper's number in brackets."""
        lines = ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in self.rows)]) + "\n"


def _plain(cell: Cell) -> str:
    more = [cell.small] * bool(cell.small) + [f"paper {cell.paper}"] * bool(cell.paper)
    return cell.text + (f" ({'; '.join(more)})" if more else "")


Links = Mapping[SweepPoint, str]


def table_1(config: StudyConfig, settings: Sequence[SettingResult], links: Links) -> list[Table]:
    """IoU by task and method over p: one table for each init, network and number of experts that was mixed at some 0 < p < 1."""
    slices = dict.fromkeys(_slice(s.setting) for s in settings if 0 < s.setting.p < 1)
    tables = []
    for place, key in enumerate(slices):
        own = [s for s in settings if _slice(s.setting) == key]
        columns = list(dict.fromkeys(sorted((s.setting.p, s.setting.weak_n) for s in own)))
        several = len({n for _, n in columns if n}) > 1
        names = [f"p = {p:g}" + (f", {n} weak" if several and n else "") for p, n in columns]
        methods = list(dict.fromkeys(s.setting.method for s in own if s.setting.method))
        found = {(s.setting.method, s.setting.p, s.setting.weak_n): s for s in own}
        rows = []
        for task in ("mean", *sorted(config.data.pathologies)):
            for method in methods:
                cells = [_value(config, found.get((method if p < 1 else None, p, n)), task, links) for p, n in columns]
                rows.append((Cell("Mean IoU" if task == "mean" else task), Cell(METHODS[method]), *cells))
        words = [init_name(key.init, settings), *([f"{key.num_expert} experts"] if key.num_expert else []), *network_words(key)]
        title = "Table 1: semi-supervised segmentation" + (f", {', '.join(words)}" if len(slices) > 1 else "")
        text = f"Pooled IoU, encoder {init_name(key.init, settings)}, {key.architecture} on {key.encoder}; intervals {shown_over(own)}. {STAR}"
        tables.append(Table(f"table1{'' if not place else f'_{place + 1}'}", title, text, ("Task", "Method", *names), 2, tuple(rows)))
    return tables


def _slice(setting: SweepPoint) -> SweepPoint:
    return replace(setting, method=None, p=0.0, weak_n=0)


def _value(config: StudyConfig, result: SettingResult | None, task: str, links: Links) -> Cell:
    if result is None:
        return Cell("")
    if not result.points:
        return Cell("–", "not built")
    own = result.mean["pooled"] if task == "mean" else result.pathologies["pooled"][config.data.pathologies.index(task)]
    paper = table_1_value(config, result.setting, task)
    return Cell(marked(own), partial_words(result) + ends(own.shown), links[result.setting], paper)


def partial_words(result: SettingResult) -> str:
    """Says when only some of a setting's trials are built."""
    return "" if result.trials == result.planned else f"{result.trials} of {result.planned} trials: "


def init_name(init: str, among: Iterable[SettingResult]) -> str:
    """An initialisation as the paper calls it; a file by its name, with as many folders as tell it from those of the other settings."""
    if init in INITS:
        return INITS[init]
    parts = init.rstrip("/").split("/")
    others = [other.rstrip("/").split("/") for other in {result.setting.init for result in among} - {init}]
    length = next((n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others)), len(parts))
    return "/".join(parts[-length:])


def shown_over(settings: Iterable[SettingResult]) -> str:
    """What the shown intervals are over."""
    single = {result.planned == 1 for result in settings}
    return "over trials and patients" + (" (one trial: over patients)" if True in single else "") if False in single else "over patients"


def network_words(setting: SweepPoint) -> list[str]:
    """Architecture and encoder where they are not the paper's."""
    return [] if (setting.architecture, setting.encoder) == PAPER_NETWORK else [f"{setting.architecture}/{setting.encoder}"]


def table_2(config: StudyConfig, settings: Sequence[SettingResult], links: Links) -> list[Table]:
    """Weakly supervised (p = 0) mIoU by encoder initialisation, size of the weak set and method, with the paper's plus-minus over trials."""
    own = [s for s in settings if s.setting.p == 0]
    if not own:
        return []
    methods = list(dict.fromkeys(str(s.setting.method) for s in own))
    rows = []
    order = [*INITS]
    keys = dict.fromkeys(replace(s.setting, method=None) for s in own)
    for key in sorted(keys, key=lambda k: (k.architecture, k.encoder, order.index(k.init) if k.init in order else len(order), k.init, k.weak_n)):
        found = {s.setting.method: s for s in own if replace(s.setting, method=None) == key}
        encoder = f"{key.encoder}-{init_name(key.init, own)}" + (f", {key.architecture}" if key.architecture != PAPER_NETWORK[0] else "")
        names = Cell(encoder), Cell(str(key.weak_n)), Cell(str(key.num_expert or "all"))
        rows.append((*names, *(_plus_minus(config, found.get(method), links) for method in methods)))
    text = "Pooled mIoU at p = 0, ± half of Student's t interval over trials, as the paper prints it. Experts: masks that thresholds were tuned on."
    names_ = ("Encoder", "Train set size", "Experts", *(METHODS[method] for method in methods))
    return [Table("table2", "Table 2: weakly supervised segmentation", text, names_, 3, tuple(rows))]


def _plus_minus(config: StudyConfig, result: SettingResult | None, links: Links) -> Cell:
    if result is None:
        return Cell("")
    if not result.points:
        return Cell("–", "not built")
    own = t_interval([*result.values("pooled").values()], config.report.interval_level)  # not cut to [0, 1], where half of it would be less
    paper = table_2_value(config, result.setting)
    half = f" ± {(own.high - own.low) / 2:.5f}" if not own.reason else ""
    return Cell(number(own.mean) + half, (partial_words(result) + own.reason).removesuffix(": "), links[result.setting], paper)


def estimate_cell(own: Estimate, link: str) -> Cell:
    """Mean, interval and mark of an estimate."""
    return Cell("–", own.trials.reason) if math.isnan(own.mean) else Cell(marked(own), ends(own.shown), link)
