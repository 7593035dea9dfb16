"""The choice by validation: the best setting of each kind of supervision, its best trial, and the model to export.

The test split has no influence: everything here is read from segmentation records, which have no test step among their
ancestors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.store.step import Record, Step
from chexseg_ray.study.graph import Study

KINDS = {"semi-supervised": "0 < p < 1", "weakly supervised": "p = 0", "fully supervised": "p = 1"}


@dataclass(frozen=True)
class Chosen:
    """The best setting of a kind, and its best trial.

    Args:
        kind: of supervision, a key of KINDS.
        setting: the point with trial -1.
        score: mean validation mIoU over the built trials, in [0, 1].
        trials: number of built trials.
        point: the trial whose validation mIoU is highest.
        evaluation: that trial's evaluation step.
        segmentation: that trial's segmentation record.
    """

    kind: str
    setting: SweepPoint
    score: float
    trials: int
    point: SweepPoint
    evaluation: Step
    segmentation: Record


def kind_of(p: float) -> str:
    """Return the kind of supervision, a key of KINDS, of points whose expert fraction is `p`, in [0, 1]."""
    if p == 1:
        return "fully supervised"
    return "weakly supervised" if p == 0 else "semi-supervised"


def validation_score(record: Record) -> float | None:
    """Return the validation mIoU, in [0, 1], of a segmentation record.

    It belongs to the checkpoint that was kept, or to the last validation; None if there is no validation set.

    Args:
        record: the segmentation record.
    """
    best = record.metrics["validation_miou"]
    if best is None and record.metrics["history"]:
        best = record.metrics["history"][-1].get("validation_miou")
    return None if best is None else float(best)


def choose(study: Study, records: Mapping[str, Record]) -> dict[str, Chosen]:
    """Choose the best setting of each kind of supervision by mean validation mIoU.

    Args:
        study: the graph.
        records: the records of the built steps, by address.

    Returns:
        The choices by kind, the best first; among equal settings the first in the study's order. A kind without a
        built trial is left out.
    """
    by_setting: dict[SweepPoint, list[tuple[float, SweepPoint, Step, Record]]] = {}
    for point, evaluation in study.points:
        record = records.get(evaluation.inputs["segmentation"].address)
        score = validation_score(record) if record else None
        if record is not None and score is not None:
            by_setting.setdefault(point.setting, []).append((score, point, evaluation, record))
    best: dict[str, Chosen] = {}
    for setting, trials in by_setting.items():
        mean, kind = sum(score for score, *_ in trials) / len(trials), kind_of(setting.p)
        if kind not in best or mean > best[kind].score:
            _, point, evaluation, record = max(trials, key=lambda trial: trial[0])
            best[kind] = Chosen(kind, setting, mean, len(trials), point, evaluation, record)
    return dict(sorted(best.items(), key=lambda item: -item[1].score))
