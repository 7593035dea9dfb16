"""What a run says while it waits for nodes."""

import inspect
import time
from collections.abc import Callable

import pytest

from chexseg_ray.cluster.waiting import Watch
from chexseg_ray.errors import TransientError
from chexseg_ray.plan.demand import Demand, Node

GPU = Demand("cams", ((1.0, 1.0),))


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_demand_that_no_node_can_hold_is_said_with_what_there_is_and_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("chexseg_ray.cluster.waiting.say", lines.append)
    nodes = [{"CPU": 2.0}]
    with Watch(lambda: list(nodes), lambda: [{"CPU": 4.0, "GPU": 1.0}], every=0.01, patience=0.05) as watch:
        time.sleep(0.1)
        assert lines == [], "nothing is asked for yet"
        watch.expect([Demand("images", ((1.0, 0.0),)), GPU])
        until(lambda: bool(lines))
        nodes.append({"CPU": 4.0, "GPU": 1.0})
        until(lambda: len(lines) > 1)
    assert lines == [
        "waiting: compute.cams asks for 1 x 1 CPU + 1 GPU; the cluster has 1 node of 2 CPUs; "
        "its autoscaler is asked, and may add 1 node of 4 CPUs + 1 GPU",
        "the cluster now has what was asked for",
    ]


def test_a_node_lost_for_good_is_said_where_nothing_will_replace_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("chexseg_ray.cluster.waiting.say", lines.append)
    nodes = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    with Watch(lambda: list(nodes), list, every=0.01, patience=0.0) as watch:
        watch.expect([GPU])
        time.sleep(0.1)
        assert lines == []
        nodes.pop()
        until(lambda: bool(lines))
    assert "such a node must join it" in lines[0]


def test_a_cluster_that_does_not_answer_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("chexseg_ray.cluster.waiting.say", lines.append)
    answers: list[str] = []

    def growth() -> list[Node]:
        answers.append("asked")
        if len(answers) < 3:
            raise TransientError("no answer")
        return []

    with Watch(lambda: [{"CPU": 2.0}], growth, every=0.01, patience=0.0) as watch:
        watch.expect([GPU])
        until(lambda: bool(lines))
    assert len(answers) >= 3
    assert "such a node must join it" in lines[0]


def test_the_first_line_comes_within_30_seconds() -> None:
    """On the clock that a study uses, two looks apart at most."""
    defaults = {name: field.default for name, field in inspect.signature(Watch).parameters.items()}
    assert defaults["patience"] + 2 * defaults["every"] <= 30
