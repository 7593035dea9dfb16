"""What went into a study and how it was made, from the records of the shared steps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.data.phantom import LICENCE
from chexseg_ray.segmentation.mixing import expert_subset, weak_subset
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study

Fact = tuple[str, str]  # a name, and a sentence about it


def licence_note(config: StudyConfig) -> str:
    """The licence of the data and what it may be used for, as a sentence.

    Args:
        config: of the study.
    """
    if config.data.root is None:
        return LICENCE
    return (
        config.data.licence
        or "licence not stated in data.licence: the terms of the data's own source hold; research use only."
    )


def failures(study: Study, store: Store, built: Collection[SweepPoint]) -> list[str]:
    """Why points are not built: one line per failed point, and one per setting for the points that did not run.

    Args:
        study: its graph.
        store: contains the errors of failed points.
        built: the built points.
    """
    failed, waiting = [], dict[str, int]()
    for point, step in study.points:
        if point in built:
            continue
        error = store.failure(step)
        if error is None:
            label = point.setting.label
            waiting[label] = waiting.get(label, 0) + 1
        else:
            failed.append(f"{point.label}: {error}")
    for label, number in waiting.items():
        failed.append(f"{label}: {number} trial{'s' if number > 1 else ''} not built")
    return failed


def expert_masks(study: Study, records: Mapping[str, Record]) -> int | None:
    """How many expert training images were accepted; None before they are decoded.

    Args:
        study: its graph.
        records: of what is built, by address.
    """
    images = _images_step(study, "expert_train")
    record = records.get(images.address) if images else None
    return record.rows if record else None


def _images_step(study: Study, split: str) -> Step | None:
    return next((s for s in study.upstream() if s.name == "images" and s.config["split"] == split), None)


def split_rows(study: Study, records: Mapping[str, Record], pathologies: Sequence[str]) -> list[list[str]]:
    """A table row for each split whose images are built.

    Args:
        study: its graph.
        records: of what is built, by address.
        pathologies: K names.

    Returns:
        Split, images, rejected, patients, and for each pathology the images that show it.
    """
    rows = []
    for step in study.upstream():
        if step.name != "images":
            continue
        images, manifest = records.get(step.address), records.get(step.inputs["manifest"].address)
        if images is None or manifest is None:
            continue
        positive = manifest.metrics["positive_masks"] or manifest.metrics["positive_labels"]
        cells = [
            step.config["split"],
            images.rows,
            images.rejects,
            manifest.metrics["patients"],
            *(positive[name] for name in pathologies),
        ]
        rows.append([str(cell) for cell in cells])
    return rows


def reject_rows(study: Study, store: Store, records: Mapping[str, Record], most: int = 50) -> list[list[str]]:
    """A table row for each rejected image, the first of each split.

    Args:
        study: its graph.
        store: contains the records.
        records: of what is built, by address.
        most: images listed per split; a further row counts the others.

    Returns:
        Split, file and reason.
    """
    rows = []
    for step in study.upstream():
        record = records.get(step.address)
        if step.name != "images" or record is None or not record.rejects:
            continue
        split = step.config["split"]
        rejects = store.read_table(record, "rejects.parquet").to_pylist()
        rows += [[split, row["path"], row["reason"]] for row in rejects[:most]]
        if len(rejects) > most:
            rows.append([split, f"{len(rejects) - most} more", ""])
    return rows


def note_rows(study: Study, records: Mapping[str, Record]) -> list[list[str]]:
    """A table row for each split and kind of note on its images, such as hardly any grey values.

    Args:
        study: its graph.
        records: of what is built, by address.

    Returns:
        Split, note, number of images, and the first ids.
    """
    rows = []
    for step in study.upstream():
        record = records.get(step.address)
        if step.name == "images" and record is not None:
            for kind, found in record.metrics.get("notes", {}).items():
                rows.append([step.config["split"], kind, str(found["images"]), ", ".join(found["first"])])
    return rows


def overlap_texts(study: Study, store: Store, records: Mapping[str, Record]) -> list[str]:
    """How much the trials' weak sets and expert masks overlap: a sentence for each size.

    Intervals over trials are too narrow where trials share much.

    Args:
        study: its graph.
        store: contains the records.
        records: of what is built, by address.
    """
    return [*_weak_overlaps(study, store, records), *_expert_overlaps(study, store, records)]


def _expert_overlaps(study: Study, store: Store, records: Mapping[str, Record]) -> list[str]:
    """A sentence for each num_expert that several built trials have."""
    trials_by_size: dict[int, set[int]] = {}
    for point, evaluation in study.points:
        if point.num_expert is not None and evaluation.address in records:
            trials_by_size.setdefault(point.num_expert, set()).add(point.trial)
    images = _images_step(study, "expert_train")
    if not trials_by_size or images is None or images.address not in records:
        return []
    ids = _ids(store, records[images.address], "images/")
    seed = study.points[0][1].inputs["segmentation"].config["sweep_seed"]
    texts = []
    for size, trials in sorted(trials_by_size.items()):
        if len(trials) > 1 and size <= len(ids):
            share = _shared_fraction([expert_subset(ids, seed, trial, size) for trial in sorted(trials)])
            texts.append(f"two trials' {size} expert masks share {share:.0%} on average")
    return texts


def _ids(store: Store, record: Record, folder: str) -> list[str]:
    """All ids in the tables of a record's folder, sorted."""
    ids = []
    for path in record.paths(folder):
        ids += store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist()
    return sorted(ids)


def _shared_fraction(subsets: Sequence[Sequence[str]]) -> float:
    """The fraction of one subset that is in another of its size, averaged over all pairs."""
    fractions = [len({*a} & {*b}) / len(a) for a, b in combinations(subsets, 2)]
    return sum(fractions) / len(fractions)


def _weak_overlaps(study: Study, store: Store, records: Mapping[str, Record]) -> list[str]:
    """A sentence for each weak_n that several built trials have."""
    trials_by_draw: dict[tuple[str, int, int], set[int]] = {}
    for point, evaluation in study.points:
        segmentation = evaluation.inputs["segmentation"]
        masks = segmentation.inputs.get("pseudo_masks")
        if masks is not None and masks.address in records and evaluation.address in records:
            manifest = records[masks.address].inputs["manifest"]
            key = (manifest, segmentation.config["sweep_seed"], point.weak_n)
            trials_by_draw.setdefault(key, set()).add(point.trial)
    accepted: dict[str, list[str]] = {}
    texts = []
    for (manifest, seed, size), trials in sorted(trials_by_draw.items(), key=lambda item: item[0][2]):
        if manifest not in accepted:
            record = next(r for r in records.values() if r.name == "pseudo_masks" and r.inputs["manifest"] == manifest)
            accepted[manifest] = _ids(store, record, "masks/")
        ids = accepted[manifest]
        if len(trials) < 2 or size > len(ids):
            continue
        share = _shared_fraction([weak_subset(ids, seed, trial, size) for trial in sorted(trials)])
        texts.append(f"two trials' weak sets of {size} share {share:.0%} of their images on average")
    return texts


def making_facts(config: StudyConfig, study: Study, records: Mapping[str, Record]) -> list[Fact]:
    """A sentence about each shared model that is built, and about the segmentation networks.

    Kinds of steps that _FACTS does not list have none.

    Args:
        config: of the study.
        study: its graph.
        records: of what is built, by address.
    """
    facts = [
        _FACTS[step.name](step, records[step.address])
        for step in study.upstream()
        if step.name in _FACTS and step.address in records
    ]
    section = config.segmentation
    networks = [
        f"{architecture} on {encoder}" for architecture in section.architectures for encoder in section.encoders
    ]
    length = f"batch {section.batch_size}, {section.num_updates} updates, learning rate {section.learning_rate}"
    facts.append(("segmentation", f"{', '.join(networks)}, {length}"))
    facts.append(("image size", f"{config.data.image_size} px, letterboxed"))
    if config.data.benchmark_masks:
        facts.append(("radiologists' file", config.data.benchmark_masks))
    return facts


def _classifier(step: Step, record: Record) -> Fact:
    """Training length and validation score."""
    text = f"{record.metrics['selected']} of {step.config['num_updates']} updates"
    area = record.metrics["validation_auroc"]
    if area is not None:
        text += f", mean validation AUROC {area:.3f}"
    return f"{step.config['architecture']} classifier", text


def _moco(step: Step, record: Record) -> Fact:
    """Training length, loss and accuracy."""
    last = record.metrics["history"][-1]
    accuracy = f"{last['accuracy']:.0%} of queries nearest to their key at the end"
    text = f"{step.config['num_updates']} updates, loss {last['loss']:.2f}, {accuracy}"
    return f"{step.config['architecture']} MoCo", text


def _encoder(step: Step, record: Record) -> Fact:
    """Source of the weights."""
    metrics = record.metrics
    text = f"{metrics['source']} ({metrics['format']}), sha256 {metrics['sha256'][:12]}"
    text += f", normalisation {metrics['normalisation']}"
    return f"{step.config['architecture']} weights", text


def _irnet(step: Step, record: Record) -> Fact:
    """Training length, encoder and loss."""
    metrics = record.metrics
    text = f"{metrics['images_used']} images, {step.config['num_updates']} updates"
    text += f", encoder {metrics['encoder']['source']}"
    text += f", boundary loss {metrics['history'][-1]['boundary']:.3f} at the end"
    return "IRNet", text


def _propagation(step: Step, record: Record) -> Fact:
    """Parameters of the random walk."""
    walk = step.config["random_walk"]
    return "random walk", f"radius {walk['radius']}, beta {walk['beta']:g}, {walk['steps']} steps"


def _pseudo_masks(step: Step, record: Record) -> Fact:
    """Thresholds of the pathologies."""
    thresholds = record.metrics.get("thresholds")
    text = "Otsu's, for each map"
    if thresholds is not None:
        texts = [f"{name} {chosen['threshold']:.2f} ({chosen['source']})" for name, chosen in thresholds.items()]
        text = ", ".join(texts)
    return f"{step.config['method']} thresholds", text


def _benchmark(step: Step, record: Record) -> Fact:
    """Number of test images with and without the radiologists' masks."""
    metrics = record.metrics
    text = f"{metrics['images']} test images"
    if metrics["absent"]:
        text += f", {metrics['absent']} of them not in the file (counted as without a mask)"
    return "radiologists", text


_FACTS: dict[str, Callable[[Step, Record], Fact]] = {
    "classifier": _classifier,
    "moco": _moco,
    "encoder": _encoder,
    "irnet": _irnet,
    "propagation": _propagation,
    "pseudo_masks": _pseudo_masks,
    "benchmark": _benchmark,
}
