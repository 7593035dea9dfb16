"""The kinds of step, one row each. A kind is made by `make(task)` in the module of its name in chexseg_ray/stages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepKind:
    """What the program must know about a kind of step.

    Args:
        version: version of its algorithm; raising it rebuilds all steps of the kind and everything made from them.
        asks: the section of `compute` with its request to Ray; empty if it runs in the calling process.
        per_trial: whether each sweep point has a step of its own; all other kinds are shared and built first.
        shown_as_shared: whether the plan lists it among the steps that trainings share.
    """

    version: int
    asks: str = ""
    per_trial: bool = False
    shown_as_shared: bool = True


KINDS = {
    "phantom": StepKind(1, asks="images", shown_as_shared=False),
    "manifest": StepKind(1, shown_as_shared=False),
    "images": StepKind(1, asks="images"),
    "encoder": StepKind(2),
    "classifier": StepKind(2, asks="classifier"),
    "moco": StepKind(1, asks="moco"),
    "cams": StepKind(1, asks="cams"),
    "irnet": StepKind(1, asks="irnet"),
    "propagation": StepKind(1, asks="propagation"),
    "pseudo_masks": StepKind(2, asks="pseudo_masks"),
    "segmentation": StepKind(2, asks="segmentation", per_trial=True),
    "evaluation": StepKind(1, per_trial=True),
    "benchmark": StepKind(1, asks="images", shown_as_shared=False),
    "prediction": StepKind(1, asks="prediction", shown_as_shared=False),
}
TRIAL_STEPS = frozenset(name for name, kind in KINDS.items() if kind.per_trial)


def module_of(name: str) -> str:
    """Return the module whose `make` makes the kind of step called `name`."""
    return f"chexseg_ray.stages.{name}"
