"""The plan of a study: what is built, what is not and why, who shares what, and what it costs. Runs nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from chexseg_ray.artifacts import Record, Step, Store, differing_fields
from chexseg_ray.build import trial_resources
from chexseg_ray.config import StudyConfig
from chexseg_ray.cost import Cost, step_cost
from chexseg_ray.pipeline import TRIAL_STEPS, Study, SweepPoint, named_points
from chexseg_ray.progress import say

_SHOWN, _COMPARED = 60, 200  # steps of one name and state that are printed; records that a missing one is compared with


@dataclass(frozen=True)
class PlannedStep:
    """A step of the plan. `serves` sweep points are made from it. Hours are of one GPU or one CPU."""

    step: Step
    built: bool
    serves: int
    cost: Cost
    gpu_hours: float
    cpu_hours: float

    @property
    def seconds(self) -> float:
        return 3600 * (self.gpu_hours + self.cpu_hours)


def plan(study: Study, store: Store, config: StudyConfig) -> list[PlannedStep]:
    """Every step of the study with its state, inputs first."""
    out, steps = [], study.steps()
    found = store.find_all(steps)
    sizes, serves = _split_sizes(study, store, config), _serves(study)
    weak_n = {step.address: point.weak_n for point, evaluation in study.points for step in (evaluation, evaluation.inputs["segmentation"])}
    rates = config.compute.rates
    for step in steps:
        cost = step_cost(step, sizes, rates.decode_seconds)
        on_gpu = _on_gpu(step, config, weak_n)
        network = cost.flops / (rates.gpu_flops_per_second if on_gpu else rates.cpu_flops_per_second) / 3600
        hours = (network, cost.cpu_seconds / 3600) if on_gpu else (0.0, network + cost.cpu_seconds / 3600)
        out.append(PlannedStep(step, step.address in found, serves.get(step.address, 0), cost, *hours))
    return out


def _serves(study: Study) -> dict[str, int]:
    out: dict[str, int] = {}
    for _, evaluation in study.points:
        for step in (evaluation, *evaluation.ancestors()):
            out[step.address] = out.get(step.address, 0) + 1
    return out


def _on_gpu(step: Step, config: StudyConfig, weak_n: Mapping[str, int]) -> bool:
    if step.name in TRIAL_STEPS:
        return trial_resources(config, weak_n[step.address]).num_gpus > 0
    return bool(getattr(getattr(config.compute, step.name, None), "num_gpus", 0) > 0)


def _split_sizes(study: Study, store: Store, config: StudyConfig) -> dict[str, int]:
    """Images of each split: as its manifest has them, else as the phantom will, else as compute.rates.images says."""
    phantom, validation = config.data.phantom, config.data.num_validation
    sizes = dict(config.compute.rates.images) if config.data.root else {
        "weak": round(1.7 * phantom.num_train_patients), "test": phantom.num_test_images, "validation": validation,
        "expert_train": phantom.num_expert_images - validation,
    }  # fmt: skip
    for step in study.upstream():
        if step.name == "manifest" and (record := store.find(step)):
            sizes[step.config["split"]] = record.rows
    return {str(split): number for split, number in sizes.items()}


def unknown_splits(study: Study, store: Store, config: StudyConfig) -> list[str]:
    """The splits whose number of images neither a manifest nor the config says; the plan's costs are then too small or too large."""
    used = {step.config["split"] for step in study.upstream() if step.name == "manifest"}
    return sorted(used - set(_split_sizes(study, store, config)))


def _why(step: Step, records: list[Record]) -> str:
    nearest = differing_fields(step, records)
    if nearest is None:
        return "never built"
    return f"{', '.join(nearest[1][:4])} differ{'s' if len(nearest[1]) == 1 else ''} from {nearest[0]}"


def print_plan(planned: Sequence[PlannedStep], study: Study, store: Store, config: StudyConfig) -> None:
    """Each step as hit or miss, the first of a kind that has many; then the settings, what is shared, and the cost of what is missing, stage by
    stage."""
    labels = {step.address: point.label for point, step in study.points}
    records = {name: store.records(name, _COMPARED) for name in {item.step.name for item in planned if not item.built}}
    shown: dict[tuple[str, bool], int] = {}
    for item in planned:
        kind = item.step.name, item.built
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] > _SHOWN:
            continue
        why = "" if item.built else _why(item.step, records[item.step.name])
        label = labels.get(item.step.address, item.step.config.get("split", item.step.config.get("architecture", "")))
        cost = "" if item.built else f"  [{item.cost.flops / 1e12:.2f} TFLOP, {_hours(item)}]"
        say(f"{'hit ' if item.built else 'miss'} {item.step.address:<28} {label}{'  ' + why if why else ''}{cost}")
    for (name, built), number in shown.items():
        if number > _SHOWN:
            say(f"{'hit ' if built else 'miss'} {name}: {number - _SHOWN} more")
    missing = [item for item in planned if not item.built]
    say(f"{len(planned) - len(missing)} hits, {len(missing)} misses")
    for line in (*matrix_lines(study, config), *sharing_lines(planned, len(study.points)), *cost_lines(missing, config)):
        say(line)


def _hours(item: PlannedStep) -> str:
    parts = [f"{hours * 3600:.0f} s of a {unit}" for hours, unit in ((item.gpu_hours, "GPU"), (item.cpu_hours, "CPU")) if hours]
    return ", ".join(parts) or "no time to speak of"


def matrix_lines(study: Study, config: StudyConfig) -> Iterator[str]:
    """The settings, one line for all p and trials of one kind."""
    named, settings = len(named_points(config)), {replace(point, trial=0) for point, _ in study.points}
    yield ""
    yield f"{len(settings)} settings, {len(study.points)} trainings ({named} as the grids name them, {named - len(study.points)} of them repeated)"
    rows: dict[tuple[str, ...], dict[float, int]] = {}
    for point, _ in study.points:
        counts = rows.setdefault(_kind(point), {})
        counts[point.p] = counts.get(point.p, 0) + 1
    kinds = [("masks", "init", "weak_n", "experts", "network", "p (trials)"), *((*kind, _trials(counts)) for kind, counts in rows.items())]
    yield from _aligned(kinds)


def _kind(point: SweepPoint) -> tuple[str, ...]:
    masks, experts = point.method or "expert only", "all" if point.num_expert is None else str(point.num_expert)
    return masks, point.init, str(point.weak_n or "-"), experts, f"{point.architecture}/{point.encoder}"


def _trials(counts: Mapping[float, int]) -> str:
    return "  ".join(f"{p:g} ({number})" for p, number in sorted(counts.items()))


def sharing_lines(planned: Sequence[PlannedStep], points: int) -> Iterator[str]:
    """The steps that several trainings are made from."""
    yield ""
    yield "shared: made once, used by so many of the trainings"
    shared = [item for item in planned if item.step.name not in {*TRIAL_STEPS, "manifest", "phantom", "benchmark"}]
    rows = [(item.step.name, _what(item.step), "built" if item.built else "to build", f"{item.serves} of {points}") for item in shared]
    yield from _aligned(rows)


def _what(step: Step) -> str:
    keys = ("split", "splits", "architecture", "source", "method", "num_expert", "trial")
    return " ".join(" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in map(step.config.get, keys) if v is not None)


def cost_lines(missing: Sequence[PlannedStep], config: StudyConfig) -> Iterator[str]:
    """What the missing steps cost, a row a stage, at the rates of compute.rates."""
    rates = config.compute.rates
    rows: list[tuple[str, ...]] = [("stage", "steps", "images seen", "PFLOP", "written", "GPU-hours", "CPU-hours", rates.currency)]
    total = Cost(), 0.0, 0.0, 0.0
    for name in dict.fromkeys(item.step.name for item in missing):
        own = [item for item in missing if item.step.name == name]
        cost, gpu, cpu = _sum([item.cost for item in own]), sum(i.gpu_hours for i in own), sum(i.cpu_hours for i in own)
        money = gpu * rates.gpu_hour + cpu * rates.cpu_hour
        rows.append(_row(name, len(own), cost, gpu, cpu, money))
        total = _sum([total[0], cost]), total[1] + gpu, total[2] + cpu, total[3] + money
    rows.append(_row("all", len(missing), *total))
    yield ""
    yield f"cost of what is to build, at {rates.gpu_flops_per_second / 1e12:g} TFLOP/s a GPU and {rates.cpu_flops_per_second / 1e9:g} GFLOP/s a CPU,"
    prices = f"{rates.gpu_hour:g} {rates.currency} a GPU-hour, {rates.cpu_hour:g} {rates.currency} a CPU-hour"
    yield f"{rates.decode_seconds:g} s to decode an image, {prices}"
    yield from _aligned(rows)


def _sum(costs: Sequence[Cost]) -> Cost:
    fields = ("flops", "cpu_seconds", "written", "images")
    return Cost(**{name: sum(getattr(cost, name) for cost in costs) for name in fields})


def _row(name: str, steps: int, cost: Cost, gpu: float, cpu: float, money: float) -> tuple[str, ...]:
    numbers = (f"{cost.images:,.0f}", f"{cost.flops / 1e15:.3f}", _bytes(cost.written), f"{gpu:.2f}", f"{cpu:.2f}", f"{money:.2f}")
    return (name, str(steps), *numbers)


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
