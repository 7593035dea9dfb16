"""The plan as printed lines: the steps, the settings, what trainings share, and the cost of the missing steps."""

from collections.abc import Iterator, Mapping, Sequence

from chexseg_ray.config.axes import setting_table
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.plan.cost import Cost, Sizes
from chexseg_ray.plan.plan import PlannedStep
from chexseg_ray.progress import aligned
from chexseg_ray.store.step import Record, Step, differing_fields
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study
from chexseg_ray.study.points import named_points
from chexseg_ray.study.steps import KINDS

_SHOWN = 60  # printed steps of one kind and state
_COMPARED = 200  # records that a missing step is compared with


def plan_lines(
    planned: Sequence[PlannedStep], study: Study, store: Store, config: StudyConfig, sizes: Sizes
) -> Iterator[str]:
    """Yield the lines of the whole plan.

    Args:
        planned: every step of the study.
        study: its graph.
        store: the study's store; its records show why a step is missing.
        config: the study's config.
        sizes: number of images of each split, as far as it is known.
    """
    missing = [item for item in planned if not item.built]
    yield from step_lines(planned, study, store)
    yield f"{len(planned) - len(missing)} steps are built, {len(missing)} are missing"
    yield from image_lines(planned, config, sizes)
    yield from matrix_lines(study, config)
    yield from sharing_lines(planned, len(study.points))
    yield from cost_lines(missing, config)


def image_lines(planned: Sequence[PlannedStep], config: StudyConfig, sizes: Sizes) -> Iterator[str]:
    """Yield the number of images of each split; phantoms that are not drawn yet have an estimated number.

    Args:
        planned: every step of the study.
        config: the study's config.
        sizes: number of images of each split, as far as it is known.
    """
    counts = [f"{split} {sizes[split]:,}" for split in ("weak", "expert_train", "validation", "test") if split in sizes]
    is_drawn = all(item.built for item in planned if item.step.name == "manifest")
    heading = "images" if config.data.root is not None or is_drawn else "images (estimated)"
    yield ""
    yield f"{heading}: {', '.join(counts) or 'unknown'}"


def step_lines(planned: Sequence[PlannedStep], study: Study, store: Store) -> Iterator[str]:
    """Yield a line for each step: built, or missing with reason and cost; of many steps of one kind only the first.

    Args:
        planned: every step of the study.
        study: its graph, which names the sweep points.
        store: the study's store; its records show why a step is missing.
    """
    labels = {step.address: point.label for point, step in study.points}
    records = {name: store.records(name, _COMPARED) for name in {item.step.name for item in planned if not item.built}}
    shown: dict[tuple[str, str], int] = {}
    for item in planned:
        state, step = "built  " if item.built else "missing", item.step
        shown[state, step.name] = shown.get((state, step.name), 0) + 1
        if shown[state, step.name] > _SHOWN:
            continue
        texts = [labels.get(step.address) or str(step.config.get("split", step.config.get("architecture", "")))]
        if not item.built:
            texts += [_why(step, records[step.name]), f"[{item.cost.flops / 1e12:.2f} TFLOP, {_seconds(item)}]"]
        yield f"{state} {step.address:<28} {'  '.join(texts)}"
    for (state, name), number in shown.items():
        if number > _SHOWN:
            yield f"{state} {name}: {number - _SHOWN} more"


def _why(step: Step, records: list[Record]) -> str:
    """Return why a step is missing: what differs from the most similar record."""
    nearest = differing_fields(step, records)
    if nearest is None:
        return "never built"
    fingerprint, fields = nearest
    return f"{', '.join(fields[:4])} differ{'s' if len(fields) == 1 else ''} from {fingerprint}"


def _seconds(item: PlannedStep) -> str:
    parts = []
    if item.gpu_hours:
        parts.append(f"{item.gpu_hours * 3600:.0f} GPU-seconds")
    if item.cpu_hours:
        parts.append(f"{item.cpu_hours * 3600:.0f} CPU-seconds")
    return ", ".join(parts) or "under a second"


def matrix_lines(study: Study, config: StudyConfig) -> Iterator[str]:
    """Yield the table of the settings; settings that differ in p only share a row.

    Args:
        study: the graph, in which each training occurs once.
        config: the study's config, whose grids may list a training twice.
    """
    named, settings = len(named_points(config)), {point.setting for point, _ in study.points}
    repeated = named - len(study.points)
    yield ""
    yield f"{len(settings)} settings, {len(study.points)} trainings (the grids list {named}; {repeated} are repeats)"
    points = [point for point, _ in study.points]
    headings, cells = setting_table(points)
    rows: dict[tuple[str, ...], dict[float, int]] = {}
    for point, (*kind, _) in zip(points, cells, strict=True):  # the last cell is p
        trials = rows.setdefault(tuple(kind), {})
        trials[point.p] = trials.get(point.p, 0) + 1
    yield from aligned([(*headings[:-1], "p (trials)"), *((*kind, _trials(trials)) for kind, trials in rows.items())])


def _trials(trials: Mapping[float, int]) -> str:
    return "  ".join(f"{p:g} ({number})" for p, number in sorted(trials.items()))


def sharing_lines(planned: Sequence[PlannedStep], points: int) -> Iterator[str]:
    """Yield the table of the steps that several trainings use.

    Args:
        planned: every step of the study.
        points: number of trainings of the study.
    """
    yield ""
    yield "shared steps are made once; the last column counts the trainings that use them"
    rows = []
    for item in planned:
        kind = KINDS[item.step.name]
        if kind.shown_as_shared and not kind.per_trial:
            state = "built" if item.built else "missing"
            rows.append((item.step.name, _description(item.step), state, f"{item.serves} of {points}"))
    yield from aligned(rows)


def _description(step: Step) -> str:
    """Return the values that distinguish a step from others of its kind."""
    texts: list[str] = []
    for key in ("split", "splits", "architecture", "source", "method", "num_expert", "trial"):
        value = step.config.get(key)
        if isinstance(value, list):
            texts += map(str, value)
        elif value is not None:
            texts.append(str(value))
    return " ".join(texts)


def cost_lines(missing: Sequence[PlannedStep], config: StudyConfig) -> Iterator[str]:
    """Yield the table of the missing steps' cost at the rates of compute.rates, one row per kind of step.

    Args:
        missing: the steps that are not built.
        config: the study's config.
    """
    rates = config.compute.rates
    names = list(dict.fromkeys(item.step.name for item in missing))
    rows: list[tuple[str, ...]] = [
        ("stage", "steps", "images seen", "PFLOP", "written", "GPU-hours", "CPU-hours", rates.currency)
    ]
    rows += [_cost_row(name, [item for item in missing if item.step.name == name], config) for name in names]
    rows.append(_cost_row("all", missing, config))
    gpu, cpu = rates.gpu_flops_per_second / 1e12, rates.cpu_flops_per_second / 1e9
    prices = f"{rates.gpu_hour:g} {rates.currency} per GPU-hour, {rates.cpu_hour:g} {rates.currency} per CPU-hour"
    yield ""
    yield f"estimated cost of the missing steps, at {gpu:g} TFLOP/s per GPU, {cpu:g} GFLOP/s per CPU thread,"
    yield f"{rates.decode_seconds:g} s of a CPU to decode an image, {prices}"
    yield from aligned(rows)


def _cost_row(name: str, items: Sequence[PlannedStep], config: StudyConfig) -> tuple[str, ...]:
    cost = sum((item.cost for item in items), Cost())
    gpu_hours, cpu_hours = sum(item.gpu_hours for item in items), sum(item.cpu_hours for item in items)
    money = gpu_hours * config.compute.rates.gpu_hour + cpu_hours * config.compute.rates.cpu_hour
    numbers = (f"{cost.images:,.0f}", f"{cost.flops / 1e15:.3f}", _bytes(cost.written))
    return (name, str(len(items)), *numbers, f"{gpu_hours:.2f}", f"{cpu_hours:.2f}", f"{money:.2f}")


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
