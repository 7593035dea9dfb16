"""What stages ask for, and whether nodes can give it."""

from pathlib import Path

import pytest

from chexseg_ray.config.parse import load_config
from chexseg_ray.errors import InputError
from chexseg_ray.plan.demand import Demand, demands, describe_nodes, refuse_what_is_lacking, still_to_come
from chexseg_ray.study.sources import load_plan

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper.yaml"
CONFIG = load_config(PAPER)
WANTED = demands(CONFIG, load_plan(CONFIG)[0])


def test_a_study_that_this_machine_cannot_run_is_refused_with_what_it_asks_for() -> None:
    refuse_what_is_lacking(WANTED, [{"CPU": 16, "GPU": 1}], (), "this machine")
    message = (
        r"compute.cams asks for 1 x 1 CPU \+ 1 GPU and 1 x 1 CPU; this machine has 1 node of 16 CPUs: "
        "lower compute.cams, or run"
    )
    with pytest.raises(InputError, match=message):
        refuse_what_is_lacking(WANTED, [{"CPU": 16}], (), "this machine")
    message = r"compute.segmentation asks for 1 x 2 CPUs \+ 1 GPU; the cluster has 1 node of 1 CPU \+ 1 GPU"
    with pytest.raises(InputError, match=message):
        refuse_what_is_lacking({"segmentation": WANTED["segmentation"]}, [{"CPU": 1, "GPU": 1}], (), "the cluster")


def test_a_bundle_must_fit_on_one_node() -> None:
    whole, pair = Demand("cams", ((4.0, 1.0),)), Demand("classifier", ((2.0, 0.0), (2.0, 0.0)))
    assert not whole.fits([{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]), "four CPUs here and a GPU there are no actor"
    assert whole.fits([{"CPU": 4.0, "GPU": 1.0}])
    assert pair.fits([{"CPU": 2.0}, {"CPU": 3.0}])
    assert not pair.fits([{"CPU": 3.0}])
    assert Demand("segmentation", ((1.0, 0.25),) * 4).fits([{"CPU": 4.0, "GPU": 1.0}])
    assert not Demand("segmentation", ((1.0, 0.25),) * 5).fits([{"CPU": 8.0, "GPU": 1.0}])


def test_what_an_autoscaler_may_add_counts() -> None:
    head, gpu = {"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}
    refuse_what_is_lacking(WANTED, [head], [gpu], "the cluster")
    message = r"the cluster has 1 node of no CPU for work, and its autoscaler may add 1 node of 2 CPUs"
    with pytest.raises(InputError, match=message):
        refuse_what_is_lacking(WANTED, [head], [{"CPU": 2.0}], "the cluster")


def test_what_has_come_already_does_not_come_again() -> None:
    cpu, gpu = {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}
    kinds = [(cpu, 4), (gpu, 8)]
    head = {"CPU": 0.0}
    assert len(still_to_come(kinds, 12, [head])) == 12
    assert still_to_come(kinds, 12, [head, *[gpu] * 8]) == [cpu] * 4
    assert still_to_come(kinds, 12, [head, *[gpu] * 8, *[cpu] * 4]) == []
    assert still_to_come([(gpu, 8)], 5, [head, gpu]) == [gpu] * 4, "the cluster's own maximum"


def test_steps_that_are_built_ask_for_nothing() -> None:
    study, _, _ = load_plan(CONFIG)
    built = {step.address for step in study.steps() if step.name not in ("segmentation", "evaluation")}
    assert demands(CONFIG, study, built).keys() == {"segmentation", "prediction"}


def test_nodes_are_counted_by_kind() -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"memory": 1.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert describe_nodes(nodes) == "2 nodes of 8 CPUs + 1 GPU, 1 node of no CPU for work"
    assert describe_nodes([]) == "no node"


def test_each_stage_that_a_study_uses_has_a_demand() -> None:
    stages = {"images", "benchmark", "cams", "propagation", "pseudo_masks", "segmentation", "prediction"}
    assert WANTED.keys() == stages, "the driver trains by itself"
    assert [str(demand) for demand in WANTED["segmentation"]] == [
        "compute.segmentation asks for 1 x 1 CPU + 0.25 GPU",
        "compute.segmentation asks for 1 x 1 CPU + 0.5 GPU",
        "compute.segmentation asks for 1 x 2 CPUs + 1 GPU",
    ]


def test_an_autoscaler_without_a_bound_fills_no_memory() -> None:
    assert len(still_to_come([({"CPU": 1.0}, 2**60)], 2**60, [])) == 10_000
