"""What is chosen, by validation alone: the best setting of each kind, its best trial, and the model to export.

The test split has no say: everything here is read from segmentation records, which have no test step among their ancestors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from chexseg_ray.artifacts import Record, Step
from chexseg_ray.pipeline import Study, SweepPoint

KINDS = {"semi-supervised": "0 < p < 1", "weakly supervised": "p = 0", "fully supervised": "p = 1"}


@dataclass(frozen=True)
class Chosen:
    """A setting (trial -1) with its mean validation mIoU over the built trials, and the trial whose own is highest."""

    kind: str
    setting: SweepPoint
    score: float
    trials: int
    point: SweepPoint
    evaluation: Step
    segmentation: Record


def kind_of(p: float) -> str:
    """How a point is supervised, by p."""
    return "fully supervised" if p == 1 else "weakly supervised" if p == 0 else "semi-supervised"


def validation_score(record: Record) -> float | None:
    """The validation mIoU of a segmentation record: of the checkpoint that was kept, or the last one; None without a validation set."""
    best = record.metrics["validation_miou"]
    if best is None and record.metrics["history"]:
        best = record.metrics["history"][-1].get("validation_miou")
    return None if best is None else float(best)


def choose(study: Study, records: Mapping[str, Record]) -> dict[str, Chosen]:
    """The best setting of each kind that has one, best first; of equal ones the first in the study's order.

    Args:
        study: its graph.
        records: of what is built, by address.
    """
    by_setting: dict[SweepPoint, list[tuple[float, SweepPoint, Step, Record]]] = {}
    for point, evaluation in study.points:
        record = records.get(evaluation.inputs["segmentation"].address)
        score = validation_score(record) if record else None
        if record is not None and score is not None:
            by_setting.setdefault(replace(point, trial=-1), []).append((score, point, evaluation, record))
    best: dict[str, Chosen] = {}
    for setting, own in by_setting.items():
        mean, kind = sum(score for score, *_ in own) / len(own), kind_of(setting.p)
        if kind not in best or mean > best[kind].score:
            _, point, evaluation, record = max(own, key=lambda each: each[0])
            best[kind] = Chosen(kind, setting, mean, len(own), point, evaluation, record)
    return dict(sorted(best.items(), key=lambda item: -item[1].score))
