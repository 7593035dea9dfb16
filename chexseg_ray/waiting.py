"""Says what a run waits for when the cluster's nodes cannot hold what the running stage asks for. A thread; changes nothing."""

import threading
import time
from collections.abc import Callable, Sequence

from chexseg_ray.demand import Demand, Node, describe_nodes
from chexseg_ray.errors import TransientError
from chexseg_ray.progress import say


class Watch:
    """Looks at the nodes every `every` seconds while a stage's demands are set; speaks after `patience` seconds without room for one of
    them, then when the nodes change, then every `again` seconds."""

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        growth: Callable[[], Sequence[Node]],
        every: float = 5.0,
        patience: float = 10.0,
        again: float = 300.0,
    ) -> None:
        self._nodes, self._growth = nodes, growth
        self._every, self._patience, self._again = every, patience, again
        self._wanted: Sequence[Demand] = ()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)  # a cluster that does not answer must not hold the end of a run

    def expect(self, wanted: Sequence[Demand]) -> None:
        """What the stage that begins now asks for."""
        self._wanted = wanted

    def _run(self) -> None:
        since, said, text = 0.0, 0.0, ""
        while not self._ended.wait(self._every):
            try:
                now, there = time.monotonic(), self._nodes()
            except TransientError:  # asked again in a moment
                continue
            lacking = [demand for demand in self._wanted if not demand.fits(there)]
            if not lacking:
                if text:
                    say("the cluster now has what was asked for")
                since, text = 0.0, ""
                continue
            since = since or now
            new = f"waiting: {lacking[0]}; the cluster has {describe_nodes(there)}; {self._hope()}"
            if now - since >= self._patience and (new != text or now - said >= self._again):
                say(new)
                said, text = now, new

    def _hope(self) -> str:
        more = self._growth()
        if more:
            return f"its autoscaler is asked, and may add {describe_nodes(more)}"
        return "such a node must join it, or end this run and lower what it asks for (what is built stays)"
