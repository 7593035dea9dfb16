"""The report of a study: results.csv, table.md, the figure, and one self-contained HTML page. From records alone."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.config import StudyConfig
from chexseg_ray.data.phantom import LICENCE
from chexseg_ray.pipeline import Study
from chexseg_ray.progress import say
from chexseg_ray.report.figures import budget_curves, curves, draw_curves
from chexseg_ray.report.results import PointResult, SettingResult, mean_of_defined, point_results, setting_results
from chexseg_ray.report.tables import header, long_csv, main_rows, markdown, number, terminal

_MADE_OF = "made_of.sha256"
_FIGURES = {"miou_over_p": "Mean IoU over p", "miou_over_num_expert": "What the next expert mask is worth"}
_TEXT = {
    "pooled": "Pixels summed over the test set, then the ratio, at model resolution without padding: the paper's IoU. "
    "A pathology without a true pixel in the test set is undefined (–) and in no mean.",
    "per_image": "The ratio of each image at its original resolution, then the mean; images without prediction and truth left out.",
    "per_image_true_pos_only": "CheXlocalize's default: also without images where either prediction or truth is empty, so that "
    "missed findings do not count.",
}


def write_report(config: StudyConfig, study: Study, store: Store, unchanged: bool = False) -> None:
    """Write `report/{report.name}/` into the store and print the main table and the page's path.

    Args:
        config: of the study.
        study: its graph.
        store: holds what is built.
        unchanged: a report that was made from the same records by the same code may stay as it is.
    """
    folder = f"report/{config.report.name}"
    records = store.find_all(study.steps())
    made_of = _made_of(config, records)
    if not (unchanged and _there(store, folder, made_of)):
        store.delete(f"{folder}/{_MADE_OF}")
        _write(config, study, store, records, folder)
        store.put(f"{folder}/{_MADE_OF}", made_of)
    say(store.get(f"{folder}/table.txt").decode())
    built = sum(step.address in records for _, step in study.points)
    say(f"{built} of {len(study.points)} points; report: {store.shown(folder)}/index.html")


def _made_of(config: StudyConfig, records: Mapping[str, Record]) -> bytes:
    """What a report depends on: the records by attempt, the config's words, the code of this room."""
    package = Path(__file__).parent.parent
    sources = [path for room in ("report", "evaluation", "data") for path in sorted((package / room).glob("*.*")) if path.is_file()]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    attempts = {address: record.attempt for address, record in records.items()}
    facts = {"code": code, "config": config.model_dump(mode="json", exclude={"compute"}), "records": attempts}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest().encode()


def _there(store: Store, folder: str, made_of: bytes) -> bool:
    try:
        said = store.get(f"{folder}/{_MADE_OF}")
    except FileNotFoundError:
        return False
    return said == made_of and {"index.html", "results.csv", "table.md", "table.txt", *_figure_files("miou_over_p")} <= set(store.names(folder))


def _figure_files(name: str) -> list[str]:
    return [f"{name}.{kind}" for kind in ("png", "svg", "json")]


def _write(config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record], folder: str) -> None:
    pathologies, level = config.data.pathologies, config.report.interval_level
    points = point_results(study, store, records, pathologies)
    settings = setting_results(study, points, level)
    names = header(pathologies)
    lines = {"miou_over_p": (curves(settings, "pooled"), "p, the probability of an expert mask")}
    if budget := budget_curves(settings, "pooled"):
        lines["miou_over_num_expert"] = (budget, "expert masks that training and tuning may use (validation masks come on top)")
    figures = {name: draw_curves(own, x_label, "pooled", level) for name, (own, x_label) in lines.items()}
    main = main_rows(settings, "pooled")
    page = _page(config, study, store, points, settings, {name: figure["png"] for name, figure in figures.items()})
    files = {
        "index.html": page.encode(),
        "results.csv": long_csv(points, settings, pathologies, level).encode(),
        "table.md": markdown(main, names).encode(),
        "table.txt": terminal(main, names, names.index("mIoU (interval)") + 1).encode(),
    }
    for name, (own, _) in lines.items():
        data = [{"line": label, "points": line} for label, line in own.items()]
        files |= {f"{name}.{kind}": content for kind, content in figures[name].items()}
        files[f"{name}.json"] = json.dumps(_finite(data), indent=1).encode()
    for name, content in files.items():
        store.put(f"{folder}/{name}", content)


def _finite(value: Any) -> Any:
    """NaN as null, throughout."""
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def licence_note(config: StudyConfig) -> str:
    """The licence and use note of the data source."""
    if config.data.root is None:
        return LICENCE
    return config.data.licence or "licence not stated in data.licence: the terms of the data's own source hold; research use only."


def _page(
    config: StudyConfig, study: Study, store: Store, points: Sequence[PointResult], settings: Sequence[SettingResult], figures: dict[str, bytes]
) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("chexseg_ray", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    built = {result.point for result in points}
    return environment.get_template("page.html.j2").render(
        title=config.report.title,
        built=len(points),
        planned=len(study.points),
        licence=licence_note(config),
        failures=[_failure(store, point.label, step.address) for point, step in study.points if point not in built],
        figures=[(_FIGURES[name], base64.b64encode(png).decode()) for name, png in figures.items()],
        names=header(config.data.pathologies),
        tables=[{"title": f"IoU, {name.replace('_', ' ')}", "text": text, "rows": main_rows(settings, name)} for name, text in _TEXT.items()],
        pathologies=config.data.pathologies,
        splits=_splits(study, store, config.data.pathologies),
        facts=_facts(config, study, store),
        root=store.root,
        records=[_record_row(result) for result in points],
    )


def _failure(store: Store, label: str, address: str) -> str:
    try:
        return f"{label}: {json.loads(store.get(f'{address}/failed.json'))['error']}"
    except FileNotFoundError:
        return f"{label}: not built"


def _record_row(result: PointResult) -> list[str]:
    mean = mean_of_defined(result.iou["pooled"])
    return [result.point.label, result.record.address, number(mean, 4), f"{result.record.run['seconds']:.1f}"]


def _splits(study: Study, store: Store, pathologies: Sequence[str]) -> list[list[str]]:
    rows = []
    for step in study.upstream():
        if step.name == "images" and (images := store.find(step)) and (manifest := store.find(step.inputs["manifest"])):
            positive = manifest.metrics["positive_masks"] or manifest.metrics["positive_labels"]
            cells = [step.config["split"], images.rows, images.rejects, manifest.metrics["patients"], *(positive[n] for n in pathologies)]
            rows.append([str(cell) for cell in cells])
    return rows


def _facts(config: StudyConfig, study: Study, store: Store) -> list[tuple[str, str]]:
    facts = []
    for step in study.upstream():
        record = store.find(step)
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
    s = config.segmentation
    networks = ", ".join(f"{architecture} on {encoder}" for architecture in s.architectures for encoder in s.encoders)
    facts.append(("segmentation", f"{networks}, batch {s.batch_size}, {s.num_updates} updates, learning rate {s.learning_rate}"))
    facts.append(("image size", f"{config.data.image_size} px, letterboxed"))
    facts.append(("intervals", f"{config.report.interval_level:.0%} Student t over trials, given this test set and these shared upstream models"))
    return facts


def _thresholds(record: Record) -> str:
    chosen = record.metrics.get("thresholds")
    if chosen is None:
        return "Otsu, for each map"
    return ", ".join(f"{name} {c['threshold']:.2f} ({c['source']})" for name, c in chosen.items())
