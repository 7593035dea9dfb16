"""The sources of pseudo masks that a sweep can compare: a method is one row."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from chexseg_ray.config.upstream import IRNET_ENCODER


@dataclass(frozen=True)
class Method:
    """Where the pseudo masks of weak images come from.

    Args:
        title: the method's name in tables and figures.
        maps: the kind of step whose maps become masks, with thresholds and gates that all methods share.
        encoders: for each config field that names encoder weights for these maps, besides the classifier's, the
            encoder's architecture.
    """

    title: str
    maps: str
    encoders: Mapping[str, str] = field(default_factory=dict)


METHODS = {
    "gradcam": Method("CAM", maps="cams"),
    "irnet": Method("IRNet", maps="propagation", encoders={"irnet.encoder": IRNET_ENCODER}),
}


def method_title(name: str | None) -> str:
    """Return a method's name in tables and figures; for None (p = 1, no pseudo masks) it is `expert`."""
    if name is None:
        return "expert"
    return METHODS[name].title if name in METHODS else name
