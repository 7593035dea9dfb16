"""Reports what a run waits for when the cluster's nodes cannot hold the running stage. A thread; it changes nothing."""

import threading
import time
from collections.abc import Callable, Sequence

from chexseg_ray.errors import TransientError
from chexseg_ray.plan.demand import Demand, Node, describe_nodes
from chexseg_ray.progress import say


class Watch:
    """Compares what the running stage asks for with the nodes, and prints a line when one demand finds no room.

    Args:
        nodes: returns the total resources of each node that is alive.
        growth: returns those of each node that may still come.
        every: seconds between two looks at the nodes.
        patience: seconds without room for a demand before the first line.
        again: seconds before an unchanged line is printed again; a line that changed is printed at once.
    """

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
        """Set what the stage that begins now asks for.

        Args:
            wanted: its demands; none for a stage that runs in the driver.
        """
        self._wanted = wanted

    def _run(self) -> None:
        """Look at the nodes until the watch ends."""
        lacking_since, printed_at, printed = 0.0, 0.0, ""  # `printed` is empty while no line is shown
        while not self._ended.wait(self._every):
            try:
                now, alive = time.monotonic(), self._nodes()
            except TransientError:  # asked again in a moment
                continue
            lacking = [demand for demand in self._wanted if not demand.fits(alive)]
            if not lacking:
                if printed:
                    say("the cluster now has what was asked for")
                lacking_since, printed = 0.0, ""
                continue
            if not lacking_since:
                lacking_since = now
            try:
                line = f"waiting: {lacking[0]}; the cluster has {describe_nodes(alive)}; {self._remedy()}"
            except TransientError:
                continue
            is_due = line != printed or now - printed_at >= self._again
            if now - lacking_since >= self._patience and is_due:
                say(line)
                printed_at, printed = now, line

    def _remedy(self) -> str:
        """What would end the wait: the autoscaler, or the user."""
        more = self._growth()
        if more:
            return f"its autoscaler is asked, and may add {describe_nodes(more)}"
        return "such a node must join it, or end this run and lower what it asks for (finished steps are kept)"
