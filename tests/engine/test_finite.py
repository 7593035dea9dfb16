"""A training whose numbers are no numbers ends at once, and its weights are never written (faults.md 24)."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from chexseg_ray.engine.train import NanLossError, TrainingJob, TrainingRun, refuse_not_finite
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named_with_its_images(value: float) -> None:
    refuse_not_finite({"train_loss": 1e30}, "segmentation update 3", ["a"], "learning_rate")
    with pytest.raises(
        NanLossError, match=rf"^segmentation update 3: train loss is {value}, images a, b: lower learning"
    ):
        refuse_not_finite({"other": 0.0, "train_loss": value}, "segmentation update 3", ["a", "b"], "learning_rate")


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    store, reported = Store.open(str(tmp_path)), list[dict[str, Any]]()
    job = TrainingJob(None, {}, store.new_attempt(Step("classifier", 1, {})), 1, math.inf, "classifier 0")  # type: ignore[type-var]
    weights = {"a": torch.ones(3), "b": torch.tensor([0.0, math.nan])}
    threads = torch.get_num_threads()
    run = TrainingRun(job, reported.append, 0)
    with pytest.raises(NanLossError, match="weights are not finite after update 0: lower learning_rate"):
        run.finish(weights, {}, 1, {}, "learning_rate")
    assert not reported
    assert store.names("classifier") == []
    run.finish({"a": torch.ones(3)}, {}, 1, {}, "learning_rate")
    assert len(reported) == 1
    torch.set_num_threads(threads)
