"""How many images of a split may be unusable (faults.md 1, 2)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from studies import tiny

from chexseg_ray.engine.execution import Task, make_execution, no_ray_to_start
from chexseg_ray.errors import InputError
from chexseg_ray.stages.images import _refuse_too_many


def task(tmp_path: Path, **limits: Any) -> Task:
    execution = make_execution(tiny(tmp_path), None, no_ray_to_start)
    return Task(cast(Any, None), {}, cast(Any, None), replace(execution, **limits))


def rejects(number: int) -> list[dict[str, str]]:
    return [{"cxr_id": f"{i}", "path": f"p{i}.jpg", "stage": "images", "reason": "missing"} for i in range(number)]


@pytest.mark.parametrize("split", ["expert_train", "validation", "test"])
def test_a_reject_among_expert_validation_or_test_images_ends_the_run(split: str, tmp_path: Path) -> None:
    words = rf"1 of 500 images of the split '{split}' cannot be used \(p0.jpg missing\).*allow_expert_rejects=true"
    with pytest.raises(InputError, match=words):
        _refuse_too_many(task(tmp_path), split, 500, rejects(1))
    _refuse_too_many(task(tmp_path, allow_expert_rejects=True), split, 500, rejects(5))
    _refuse_too_many(task(tmp_path), split, 500, [])


def test_weak_rejects_are_allowed_up_to_the_limit(tmp_path: Path) -> None:
    for total, number in ((500, 5), (50, 1), (10, 1)):
        _refuse_too_many(task(tmp_path), "weak", total, rejects(number))
    for total, number in ((500, 6), (50, 2), (1, 1)):
        with pytest.raises(InputError, match=rf"{number} of {total} images cannot be used .*max_reject_fraction"):
            _refuse_too_many(task(tmp_path), "weak", total, rejects(number))
    with pytest.raises(InputError, match="20 of 20 images"):
        _refuse_too_many(task(tmp_path, max_reject_fraction=1.0), "weak", 20, rejects(20))
    with pytest.raises(InputError) as caught:
        _refuse_too_many(task(tmp_path), "weak", 500, rejects(30))
    assert "p9.jpg missing" in str(caught.value)
    assert "p10.jpg" not in str(caught.value), "the first ten"
