"""The sweep points: the product of the axes, for each grid."""

from itertools import product
from typing import Any

from chexseg_ray.config.axes import AXES, Axis, SweepPoint, loops
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.config.sweep import GridConfig


def sweep_points(config: StudyConfig) -> list[SweepPoint]:
    """Return the canonical points of all grids, each once, in the config's order with trials innermost.

    Args:
        config: the study's config.
    """
    return list(dict.fromkeys(point.canonical() for point in named_points(config)))


def named_points(config: StudyConfig) -> list[SweepPoint]:
    """Return the points as the grids list them; some may be the same training.

    Args:
        config: the study's config.
    """
    points = []
    for grid in (None, *config.sweep.also):
        values = {axis.name: axis_values(config, axis, grid) for axis in AXES}
        trials = config.sweep.trials if grid is None or grid.trials is None else grid.trials
        names = loops()
        for *chosen, trial in product(*(values[name] for name in names), range(trials)):
            points.append(SweepPoint(**dict(zip(names, chosen, strict=True)), trial=trial))
    return points


def axis_values(config: StudyConfig, axis: Axis, grid: GridConfig | None = None) -> tuple[Any, ...]:
    """Return the values of an axis in one grid.

    Args:
        config: the study's config.
        axis: one of AXES.
        grid: one of `sweep.also`; None is the grid of `sweep` itself.
    """
    values = getattr(grid, axis.name, None)
    if values is None:
        values = getattr(getattr(config, axis.section), axis.name)
    return values if isinstance(values, tuple) else (values,)


def every_value(config: StudyConfig, axis: Axis) -> tuple[Any, ...]:
    """Return all values that `axis` has in any grid of `config`, each once."""
    grids = [axis_values(config, axis, grid) for grid in (None, *config.sweep.also)]
    return tuple(dict.fromkeys(value for values in grids for value in values))
