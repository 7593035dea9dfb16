"""Runs a whole study: the shared steps in the driver, then the missing points as trials, then the report."""

import importlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

from chexseg_ray.cluster.claims import claim, claim_on_cluster, describe_job, submission_id, who
from chexseg_ray.cluster.machine import cpus_here, gpus_here
from chexseg_ray.cluster.nodes import growth, nodes, refuse_local_roots, with_workers
from chexseg_ray.cluster.session import RaySession, on_cluster, ray_works
from chexseg_ray.cluster.waiting import Watch
from chexseg_ray.command import command_line
from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.engine.execution import Execution, make_execution, no_ray_to_start
from chexseg_ray.engine.source_tables import SourceTables
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.plan.demand import demands, refuse_what_is_lacking
from chexseg_ray.plan.lines import plan_lines
from chexseg_ray.plan.plan import PlannedStep, built_sizes, known_sizes, manifests, plan
from chexseg_ray.plan.schedule import Machine, hours_text, schedule_lines, wall_hours
from chexseg_ray.progress import say
from chexseg_ray.report.page import write_report
from chexseg_ray.store.filesystem import Source
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.choice import choose
from chexseg_ray.study.graph import Study, prediction
from chexseg_ray.study.sources import load_plan, load_study
from chexseg_ray.study.steps import KINDS
from chexseg_ray.sweep.build import build
from chexseg_ray.sweep.checks import check_inputs, prepare, refuse_too_large_sets, survey
from chexseg_ray.sweep.trials import run_points


def run_study(config: StudyConfig, plan_only: bool = False, asked: str = "") -> int:
    """Build what is missing of a study and write its report.

    Args:
        config: the study's config.
        plan_only: print the plan and run nothing.
        asked: config file and overrides as the user wrote them, for the metadata of a submitted job.

    Returns:
        The exit code: 0 done, 3 some trials failed.

    Raises:
        InputError: the config or the data are faulty.
        TransientError: the cluster or the store does not work now.
    """
    start = time.monotonic()
    store = Store.open(config.store.root)
    say(f"store: {store.root}")
    if plan_only:
        _show_plan(config, store)
        return 0
    study, source = load_study(config)
    planned = plan(study, store, config, known_sizes(study, store, config))
    missing = [item for item in planned if not item.built]
    unpredicted = [] if missing else _unpredicted(study, store)
    failed: list[SweepPoint] = []
    if missing:
        _announce(study, missing)
    elif unpredicted:
        say(f"to build: the predictions of {len(unpredicted)} chosen models")
    else:
        say(f"nothing to build: all {len(planned)} steps are in the store")
    try:
        if missing or unpredicted:
            built = {item.step.address for item in planned if item.built}
            with ray_works():
                failed = _build_missing(config, study, source, store, built, asked)
        write_report(config, study, store, unchanged=not missing and not unpredicted)
    except (InputError, TransientError, KeyboardInterrupt) as error:
        for line in _kept_and_next(study, store):
            error.add_note(line)
        raise
    say(f"{time.monotonic() - start:.0f} s")
    if failed:
        say(f"{len(failed)} of {len(study.points)} trainings failed; to try them again: {command_line()}")
    return 3 if failed else 0


def kept_and_next(config: StudyConfig) -> list[str]:
    """Say below an error what of a study is kept, and the command that goes on.

    Args:
        config: the study's config.

    Returns:
        Two lines; none where nothing is built, or data or store cannot be read now.
    """
    try:
        study, _ = load_study(config)
        return _kept_and_next(study, Store.open(config.store.root))
    except (InputError, TransientError):
        return []


def _kept_and_next(study: Study, store: Store) -> list[str]:
    """Two lines below an error: what of a study is kept, and the command that goes on; none where nothing is built."""
    try:
        built = store.find_all(study.steps())
    except TransientError:
        return [f"finished steps are kept; to go on: {command_line()}"]
    if not built:
        return []
    points = sum(step.address in built for _, step in study.points)
    shared = sum(not KINDS[address.split("/")[0]].per_trial for address in built)
    kept = f"{shared} shared steps and {points} of {len(study.points)} trainings are kept in {store.shown_root}"
    return [f"{kept}; unfinished trainings go on from their last saved state", f"to go on: {command_line()}"]


def _show_plan(config: StudyConfig, store: Store) -> None:
    """Print the plan; missing data and files of weights are named at the end."""
    study, source, absent = load_plan(config)
    sizes, counted, about = known_sizes(study, store, config), built_sizes(study, store), list[str]()
    notes = [f"{fault} (so no step that is made from it counts as built)" for fault in absent]
    if source is not None:
        in_files, faults, about = survey(config, study, source, store)
        counted |= in_files
        notes += faults
    sizes |= counted
    try:
        refuse_too_large_sets(config, counted)
    except InputError as error:
        notes.append(str(error))
    unknown = sorted({step.config["split"] for step in manifests(study)} - set(sizes))
    if unknown:
        splits = ", ".join(unknown)
        remedy = "set compute.rates.images to correct the costs"
        notes.append(f"the number of images is unknown for: {splits}; costs assume 100 each; {remedy}")
    planned = plan(study, store, config, sizes)
    missing = [item for item in planned if not item.built]
    for line in plan_lines(planned, study, store, config, sizes):
        say(line)
    for line in about:
        say(line)
    for line in schedule_lines(missing, study, config, Machine(gpus_here(), cpus_here())):
        say(line)
    waiting = _unpredicted(study, store)
    if waiting:
        notes.append(f"the predictions of {len(waiting)} chosen models are missing")
    for note in notes:
        say(f"note: {note}")


def _announce(study: Study, missing: Sequence[PlannedStep]) -> None:
    """Print what is going to be built."""
    addresses = {item.step.address for item in missing}
    points = sum(step.address in addresses for _, step in study.points)
    kinds = Counter(item.step.name for item in missing if not KINDS[item.step.name].per_trial)
    shared = ", ".join(f"{count} {name}" for name, count in kinds.items()) or "no"
    say(f"to build: {shared} (shared steps); {points} of {len(study.points)} trainings")


def _announce_time(config: StudyConfig, study: Study, store: Store) -> None:
    """Print how long it takes, once the number of images is known."""
    if on_cluster():
        say("estimated time: --plan prints it for several sizes of cluster")
        return
    planned = plan(study, store, config, known_sizes(study, store, config))
    machine = Machine(gpus_here(), cpus_here())
    hours = wall_hours([item for item in planned if not item.built], study, config, machine)
    say(f"estimated time on this machine ({machine}): {hours_text(hours)}")


def _build_missing(
    config: StudyConfig, study: Study, source: Source | None, store: Store, built: set[str], asked: str
) -> list[SweepPoint]:
    """Build the missing steps under a claim on the store.

    On this machine, Ray starts when a step needs it. A cluster is joined first.

    Returns:
        The points that failed.
    """
    tables = SourceTables()
    check_inputs(config, source, tables)
    refuse = partial(refuse_what_is_lacking, demands(config, study, built), growth=(), where="this machine")
    session = RaySession(config.compute.dashboard, cpus_here(), check=None if on_cluster() else refuse)
    try:
        if on_cluster():
            session.start()
            describe_job(submission_id(), study=config.report.name, config=asked, store=store.root)
            refuse_local_roots(config)
            config = with_workers(config)
            refuse_what_is_lacking(demands(config, study, built), nodes(), growth(config), "the cluster")
        with ExitStack() as stack:
            stack.enter_context(claim(store))
            watch = None
            if on_cluster():
                stack.enter_context(claim_on_cluster(store, who()))
                watch = stack.enter_context(Watch(nodes, partial(growth, config)))
                watch.expect(demands(config, study).get("phantom", ()))
            execution = replace(make_execution(config, source, session.start), tables=tables)
            prepare(config, study, source, store, execution)
            _announce_time(config, study, store)
            return _build_all(config, study, store, execution, watch)
    finally:
        session.stop()


def _build_all(
    config: StudyConfig, study: Study, store: Store, execution: Execution, watch: Watch | None
) -> list[SweepPoint]:
    """Build the shared steps in the driver, then the missing points as trials, then the chosen models' predictions.

    Returns:
        The points that failed.
    """
    built = store.find_all(study.steps())
    waiting = [(point, step) for point, step in study.points if step.address not in built]
    wanted = demands(config, study, built)
    for step in _upstream(study, [step for _, step in waiting], set(built)):
        if watch:
            watch.expect(wanted.get(step.name, ()))
        build(step, store, execution)
    execution.tables.clear()
    failed: list[SweepPoint] = []
    if waiting:
        if watch:
            watch.expect(wanted.get("segmentation", ()))
        execution.start_ray()
        from chexseg_ray.engine.pool import share_pool

        # Tune writes into the folder, and nothing reads it afterwards
        with TemporaryDirectory(prefix="chexseg_tune_", ignore_cleanup_errors=True) as folder:
            may_come = growth(config) if on_cluster() else ()
            shared = share_pool(store, [step.inputs["segmentation"] for _, step in waiting])
            in_trials = replace(execution, shared=shared, start_ray=no_ray_to_start)
            failed = run_points(config, waiting, store, in_trials, folder, may_come)
    if watch:
        watch.expect(wanted.get("prediction", ()))
    try:
        for step in _unpredicted(study, store):
            build(step, store, execution)
    except (InputError, TransientError):
        write_report(config, study, store)  # all points are built, so their report is written without the pictures
        raise
    return failed


def _upstream(study: Study, waiting: Sequence[Step], built: set[str]) -> list[Step]:
    """Return the shared steps to build: those that the waiting points and the benchmark are made from."""
    ends = [*waiting]
    if study.benchmark:
        ends.append(study.benchmark)
    needed = {step.address for end in ends for step in (*end.ancestors(), end)} - built
    steps = [step for step in study.upstream() if step.address in needed]
    if any(step.name == "classifier" for step in steps):  # importing torchvision takes 6 s: do it while Ray starts
        threading.Thread(target=importlib.import_module, args=("torchvision",), daemon=True).start()
    return steps


def _unpredicted(study: Study, store: Store) -> list[Step]:
    """Return the prediction steps of chosen models that are not built."""
    records = store.find_all(step.inputs["segmentation"] for _, step in study.points)
    steps = [prediction(chosen.evaluation) for chosen in choose(study, records).values()]
    return [step for step in steps if store.find(step) is None]
