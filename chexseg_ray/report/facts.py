"""What went in and how it was made, from the records of the shared steps."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.config import StudyConfig
from chexseg_ray.data.phantom import LICENCE
from chexseg_ray.pipeline import Study, SweepPoint
from chexseg_ray.segmentation.mixing import expert_subset, weak_subset


def licence_note(config: StudyConfig) -> str:
    """The licence and use note of the data source."""
    if config.data.root is None:
        return LICENCE
    return config.data.licence or "licence not stated in data.licence: the terms of the data's own source hold; research use only."


def failures(study: Study, store: Store, built: Collection[SweepPoint]) -> list[str]:
    """Why points are not built: each failure in a line, the others counted by setting."""
    failed, waiting = [], dict[str, int]()
    for point, step in study.points:
        if point in built:
            continue
        try:
            failed.append(f"{point.label}: {json.loads(store.get(f'{step.address}/failed.json'))['error']}")
        except FileNotFoundError:
            label = replace(point, trial=-1).label
            waiting[label] = waiting.get(label, 0) + 1
    return [*failed, *(f"{label}: {number} trial{'s' if number > 1 else ''} not built" for label, number in waiting.items())]


def expert_masks(study: Study, records: Mapping[str, Record]) -> int | None:
    """How many expert training images were accepted; None before they are decoded."""
    for step in study.upstream():
        if step.name == "images" and step.config["split"] == "expert_train" and (images := records.get(step.address)):
            return images.rows
    return None


def split_rows(study: Study, records: Mapping[str, Record], pathologies: Sequence[str]) -> list[list[str]]:
    """Split, images, rejected, patients, and images that show each pathology."""
    rows = []
    for step in study.upstream():
        if step.name == "images" and (images := records.get(step.address)) and (manifest := records.get(step.inputs["manifest"].address)):
            positive = manifest.metrics["positive_masks"] or manifest.metrics["positive_labels"]
            cells = [step.config["split"], images.rows, images.rejects, manifest.metrics["patients"], *(positive[n] for n in pathologies)]
            rows.append([str(cell) for cell in cells])
    return rows


def reject_rows(study: Study, store: Store, records: Mapping[str, Record], most: int = 50) -> list[list[str]]:
    """Split, file and reason of each rejected image, the first of each split."""
    rows = []
    for step in study.upstream():
        record = records.get(step.address)
        if step.name == "images" and record and record.rejects:
            own = store.read_table(record, "rejects.parquet").to_pylist()
            rows += [[step.config["split"], row["path"], row["reason"]] for row in own[:most]]
            rows += [[step.config["split"], f"{len(own) - most} more", ""]] if len(own) > most else []
    return rows


def overlap_words(study: Study, store: Store, records: Mapping[str, Record]) -> list[str]:
    """How much the trials' weak sets and drawn expert masks share, for each size: intervals over trials are too narrow where they share much."""
    return [*_weak_overlaps(study, store, records), *_expert_overlaps(study, store, records)]


def _expert_overlaps(study: Study, store: Store, records: Mapping[str, Record]) -> list[str]:
    trials: dict[int, set[int]] = {}
    for point, evaluation in study.points:
        if point.num_expert is not None and evaluation.address in records:
            trials.setdefault(point.num_expert, set()).add(point.trial)
    images = next((step for step in study.upstream() if step.name == "images" and step.config["split"] == "expert_train"), None)
    if not trials or images is None or images.address not in records:
        return []
    ids, seed = _ids(store, records[images.address], "images/"), study.points[0][1].inputs["segmentation"].config["sweep_seed"]
    return [
        f"two trials' {size} expert masks share {_shared([expert_subset(ids, seed, t, size) for t in sorted(own)]):.0%} on average"
        for size, own in sorted(trials.items())
        if len(own) > 1 and size <= len(ids)
    ]


def _ids(store: Store, record: Record, folder: str) -> list[str]:
    return sorted(i for path in record.paths(folder) for i in store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist())


def _shared(subsets: Sequence[Sequence[str]]) -> float:
    """The share of one subset that is in another of its size, over all pairs."""
    shares = [len({*a} & {*b}) / len(a) for a, b in combinations(subsets, 2)]
    return sum(shares) / len(shares)


def _weak_overlaps(study: Study, store: Store, records: Mapping[str, Record]) -> list[str]:
    trials: dict[tuple[str, int, int], set[int]] = {}
    for point, evaluation in study.points:
        masks = evaluation.inputs["segmentation"].inputs.get("pseudo_masks")
        if masks is not None and masks.address in records and evaluation.address in records:
            key = records[masks.address].inputs["manifest"], evaluation.inputs["segmentation"].config["sweep_seed"], point.weak_n
            trials.setdefault(key, set()).add(point.trial)
    accepted: dict[str, list[str]] = {}
    out = []
    for (manifest, seed, size), own in sorted(trials.items(), key=lambda item: item[0][2]):
        if manifest not in accepted:
            found = next(r for r in records.values() if r.name == "pseudo_masks" and r.inputs["manifest"] == manifest)
            accepted[manifest] = _ids(store, found, "masks/")
        if len(own) < 2 or size > len(accepted[manifest]):
            continue
        share = _shared([weak_subset(accepted[manifest], seed, trial, size) for trial in sorted(own)])
        out.append(f"two trials' weak sets of {size} share {share:.0%} of their images on average")
    return out


def making_facts(config: StudyConfig, study: Study, records: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Name and sentence of each shared model, and of the segmentation networks."""
    facts = []
    for step in study.upstream():
        record = records.get(step.address)
        if record and step.name == "classifier":
            area = record.metrics["validation_auroc"]
            text = f"{record.metrics['selected']} of {step.config['num_updates']} updates"
            facts.append((f"{step.config['architecture']} classifier", text + (f", mean validation AUROC {area:.3f}" if area is not None else "")))
        if record and step.name == "moco":
            last = record.metrics["history"][-1]
            text = f"{step.config['num_updates']} updates, loss {last['loss']:.2f}, {last['accuracy']:.0%} of queries nearest to their key at the end"
            facts.append((f"{step.config['architecture']} MoCo", text))
        if record and step.name == "encoder":
            text = f"{record.metrics['source']} ({record.metrics['format']}), sha256 {record.metrics['sha256'][:12]}"
            facts.append((f"{step.config['architecture']} weights", f"{text}, normalisation {record.metrics['normalisation']}"))
        if record and step.name == "irnet":
            used = f"{record.metrics['images_used']} images, {step.config['num_updates']} updates, encoder {record.metrics['encoder']['source']}"
            facts.append(("IRNet", f"{used}, boundary loss {record.metrics['history'][-1]['boundary']:.3f} at the end"))
        if record and step.name == "propagation":
            walk = step.config["random_walk"]
            facts.append(("random walk", f"radius {walk['radius']}, beta {walk['beta']:g}, {walk['steps']} steps"))
        if record and step.name == "pseudo_masks":
            facts.append((f"{step.config['method']} thresholds", _thresholds(record)))
        if record and step.name == "benchmark":
            absent = f", {record.metrics['absent']} of them not in the file (counted as without a mask)" if record.metrics["absent"] else ""
            facts.append(("radiologists", f"{config.data.benchmark_masks}, {record.metrics['images']} test images{absent}"))
    s = config.segmentation
    networks = ", ".join(f"{architecture} on {encoder}" for architecture in s.architectures for encoder in s.encoders)
    facts.append(("segmentation", f"{networks}, batch {s.batch_size}, {s.num_updates} updates, learning rate {s.learning_rate}"))
    facts.append(("image size", f"{config.data.image_size} px, letterboxed"))
    return facts


def _thresholds(record: Record) -> str:
    chosen = record.metrics.get("thresholds")
    if chosen is None:
        return "Otsu, for each map"
    return ", ".join(f"{name} {c['threshold']:.2f} ({c['source']})" for name, c in chosen.items())
