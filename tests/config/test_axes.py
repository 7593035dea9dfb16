"""What tables, labels and sentences say of an axis that has a default."""

from dataclasses import replace

import pytest

from chexseg_ray.config import axes
from chexseg_ray.config.axes import SweepPoint

POINT = SweepPoint("gradcam", 0.9, "moco", 100, None, "deeplabv3plus", "resnet18")


@pytest.fixture
def optional_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """num_expert as if it had come later, with a default."""
    rows = [replace(axis, default=None) if axis.name == "num_expert" else axis for axis in axes.AXES]
    monkeypatch.setattr(axes, "AXES", tuple(rows))


@pytest.mark.usefixtures("optional_experts")
def test_an_axis_with_a_default_shows_where_a_point_has_another_value() -> None:
    other = replace(POINT, num_expert=10)
    assert axes.extra_words(POINT) == []
    assert axes.extra_words(other) == ["10 experts"]
    assert "num_expert" not in axes.columns([POINT])
    assert "num_expert" in axes.columns([POINT, other])
    headings, rows = axes.setting_table([POINT])
    assert headings == ["masks", "init", "weak_n", "network", "p"]
    assert rows == [["gradcam", "moco", "100", "deeplabv3plus/resnet18", "0.9"]]
    headings, rows = axes.setting_table([POINT, other])
    assert headings == ["masks", "init", "weak_n", "experts", "network", "p"]
    assert [row[3] for row in rows] == ["all", "10"]


def test_an_axis_without_a_default_is_always_a_column() -> None:
    assert axes.extra_words(replace(POINT, num_expert=10)) == []
    assert axes.columns([POINT]) == ["method", "init", "p", "weak_n", "num_expert", "architecture", "encoder"]
