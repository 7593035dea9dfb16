"""Checks before anything is trained: networks that cannot be built, faulty data, sets larger than the data."""

from collections.abc import Mapping
from itertools import product

from chexseg_ray.config.axes import PAPER_NETWORK
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.engine.execution import Execution
from chexseg_ray.engine.source_tables import SourceTables
from chexseg_ray.errors import InputError
from chexseg_ray.plan.plan import manifests
from chexseg_ray.store.filesystem import Source
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study
from chexseg_ray.study.sources import source_files
from chexseg_ray.sweep.build import build


def check_inputs(config: StudyConfig, source: Source | None, tables: SourceTables) -> None:
    """Check networks and the user's files before Ray starts or a cluster is joined. Writes nothing.

    Args:
        config: the study's config.
        source: the data root; None for phantoms.
        tables: keeps the parsed files for later steps.

    Raises:
        InputError: smp cannot build a network, a source file is faulty, or a patient is in two files.
    """
    _check_networks(config)
    if source is not None:
        from chexseg_ray.stages.manifest import check_sources

        check_sources(tables, source, source_files(config), config.data.pathologies, config.data.names_in_files)


def prepare(config: StudyConfig, study: Study, source: Source | None, store: Store, execution: Execution) -> None:
    """Build the encoder weights and manifests, which show faults of weights and data before anything is trained.

    For the user's own data this happens before a local Ray starts.

    Args:
        config: the study's config.
        study: its graph.
        source: the data root; None for phantoms.
        store: the store that steps are built in.
        execution: how steps run here.

    Raises:
        InputError: encoder weights are missing or do not fit, or the sweep asks for more images than there are.
    """
    upstream = study.upstream()
    for step in upstream:
        if step.name == "encoder":
            build(step, store, execution)
    rows = {step.config["split"]: build(step, store, execution).rows for step in upstream if step.name == "manifest"}
    if study.benchmark and source is not None:
        from chexseg_ray.stages.benchmark import Settings, read_benchmark

        settings = Settings(**study.benchmark.config)
        manifest = build(study.benchmark.inputs["manifest_test"], store, execution)
        read_benchmark(execution.tables, source, config.data.benchmark_masks, settings, store, manifest)
    refuse_too_large_sets(config, rows)


def refuse_too_large_sets(config: StudyConfig, sizes: Mapping[str, int]) -> None:
    """Refuse a sweep that asks for more images than there are.

    Args:
        config: the study's config.
        sizes: number of images of each split, as far as it is known.

    Raises:
        InputError: a value of sweep.weak_n or sweep.num_expert exceeds the split that it is drawn from.
    """
    for split, axis in (("weak", "weak_n"), ("expert_train", "num_expert")):
        if split not in sizes:
            continue
        too_large = [size for size in config.sweep.every(axis) if size is not None and size > sizes[split]]
        if too_large:
            available = f"the {sizes[split]} images of the split {split!r}"
            raise InputError(f"sweep.{axis}={too_large[0]} exceeds {available}: choose a smaller one")


def survey(
    config: StudyConfig, study: Study, source: Source, store: Store
) -> tuple[dict[str, int], list[str], list[str]]:
    """Count the images of each split whose manifest is not built, and find the faults of the data. Builds nothing.

    Args:
        config: the study's config.
        study: its graph.
        source: the data root.
        store: the study's store.

    Returns:
        {split: number of images}, the faults of the data with which a run would end, one line each, and lines about the
        expert masks of these splits.
    """
    from chexseg_ray.stages.manifest import Settings, check_sources, describe_masks, select_rows

    tables, counted, faults, about = SourceTables(), dict[str, int](), list[str](), list[str]()
    try:
        check_sources(tables, source, source_files(config), config.data.pathologies, config.data.names_in_files)
    except InputError as error:
        faults.append(str(error))
    for step in manifests(study):
        if store.find(step) is None:
            try:
                settings = Settings(**step.config)
                rows, masks = select_rows(tables, source, source_files(config), settings)
            except InputError as error:
                faults.append(str(error))
            else:
                counted[step.config["split"]] = len(rows)
                about += describe_masks(rows, masks, settings)
    return counted, list(dict.fromkeys(faults)), about


def _check_networks(config: StudyConfig) -> None:
    """Run networks other than the paper's, which is known to work, on empty images; importing smp takes 6 s."""
    section = config.segmentation
    others = [pair for pair in product(section.architectures, section.encoders) if pair != PAPER_NETWORK]
    if others:
        from chexseg_ray.stages.networks import check_networks

        check_networks(others, config.data.image_size, section.output_stride, section.atrous_rates)
