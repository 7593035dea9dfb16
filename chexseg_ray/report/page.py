"""The report of a study: results.csv, tables, figures, and one self-contained HTML page, made only from records."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.progress import aligned, say
from chexseg_ray.report.cells import Table
from chexseg_ray.report.contrasts import ContrastResult, contrast_results
from chexseg_ray.report.examples import draw_examples, examples
from chexseg_ray.report.facts import (
    expert_masks,
    failures,
    licence_note,
    making_facts,
    note_rows,
    overlap_texts,
    reject_rows,
    split_rows,
)
from chexseg_ray.report.figures import draw, figures
from chexseg_ray.report.findings import findings, gap_text
from chexseg_ray.report.long_tables import long_files
from chexseg_ray.report.paper import CAUTION, is_paper, paper_gap_text
from chexseg_ray.report.paper_tables import table_1, table_2
from chexseg_ray.report.readers import Comparison, compare, reader_table
from chexseg_ray.report.results import (
    PointResult,
    SettingResult,
    TestSet,
    mean_of_defined,
    measured,
    point_results,
    read_test_set,
    setting_results,
)
from chexseg_ray.report.sections import chosen_rows, contrast_table, interval_texts
from chexseg_ray.report.tables import MEAN_COLUMN, main_table
from chexseg_ray.report.text import STAR, markdown, number
from chexseg_ray.report.whole_images import RULE, explained, mark, zero_notes, zero_thresholds
from chexseg_ray.store.own_files import own_files
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store
from chexseg_ray.study.choice import Chosen, choose
from chexseg_ray.study.graph import Study, prediction

_MADE_OF = "made_of.sha256"
_LIST = "files.txt"
_EXAMPLES = "figure4_examples"
_TEXTS = {
    "pooled": "Pixels are summed over the test set before the ratio is taken, at model resolution without padding: "
    "the paper's IoU. A pathology that has no pixel in the test set's truth is undefined (a dash) and left out of the "
    "mean.",
    "per_image": "The ratio is taken for each image at its original resolution, then averaged over the images where "
    "prediction or truth is not empty.",
    "per_image_true_pos_only": "CheXlocalize's default: as per image, but only over the images where prediction and "
    "truth are both not empty, so that missed findings do not count. A pathology without such an image is a dash; one "
    "that only some trials define shows how many. A trial's mean is over the pathologies that it defines.",
}


@dataclass(frozen=True)
class Results:
    """All numbers that the report shows.

    Args:
        points: the built points.
        settings: all settings.
        test: the test set; None where nothing is built.
        chosen: the best setting of each kind by validation.
        comparison: of models with radiologists.
        contrasts: those that the config asks for.
        lacking: contrasts, as text, for which the study has no settings.
        tables: of the page.
        links: anchors of the settings.
        zeros: the settings with trials whose threshold is 0, one line each.
    """

    points: list[PointResult]
    settings: list[SettingResult]
    test: TestSet | None
    chosen: Mapping[str, Chosen]
    comparison: Comparison
    contrasts: list[ContrastResult]
    lacking: list[str]
    tables: list[Table]
    links: Mapping[SweepPoint, str]
    zeros: list[str]


def write_report(config: StudyConfig, study: Study, store: Store, unchanged: bool = False) -> None:
    """Write `report/{report.name}/` into the store and print the main table and the page's path.

    Args:
        config: of the study.
        study: its graph.
        store: contains what is built, and gets the report.
        unchanged: keep a report that was made from the same records by the same code.
    """
    folder = f"report/{config.report.name}"
    records = store.find_all(study.steps())
    made_of = _made_of(config, study, store, records)
    if not (unchanged and _is_current(store, folder, made_of)):
        store.delete(f"{folder}/{_MADE_OF}")
        _write(config, study, store, records, folder)
        store.put(f"{folder}/{_MADE_OF}", made_of)
    say(store.get(f"{folder}/table.txt").decode())
    built = sum(step.address in records for _, step in study.points)
    say(f"{built} of {len(study.points)} points; report: {store.shown(folder)}/index.html")


def _made_of(config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record]) -> bytes:
    """A sha256 over all that a report depends on: config, package code, and records, also of the chosen predictions."""
    predictions = store.find_all(prediction(model.evaluation) for model in choose(study, records).values())
    attempts = {address: record.attempt for address, record in {**records, **predictions}.items()}
    facts = {"code": _code_hash(), "config": config.model_dump(mode="json", exclude={"compute"}), "records": attempts}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest().encode()


def _code_hash() -> str:
    """sha256 over every file of the package."""
    package = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            code.update(str(path.relative_to(package)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return code.hexdigest()


def _is_current(store: Store, folder: str, made_of: bytes) -> bool:
    """Whether a folder contains the whole report that is made of this."""
    try:
        present = store.get(f"{folder}/{_MADE_OF}")
    except FileNotFoundError:
        return False
    return present == made_of and {"index.html", "results.csv", "table.md", "table.txt"} <= set(store.names(folder))


def read_results(config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record]) -> Results:
    """Compute all numbers of a study, finished or not, from the records that are built.

    Args:
        config: of the study.
        study: its graph.
        store: contains the records.
        records: of what is built, by address.
    """
    pathologies, level = config.data.pathologies, config.report.interval_level
    points = point_results(study, store, records, pathologies)
    benchmark = records.get(study.benchmark.address) if study.benchmark else None
    reader = measured(store, study.points[0][0], benchmark, pathologies) if benchmark else None
    first = points[0].record if points else benchmark
    test = read_test_set(store, first, pathologies, config.report.bootstrap_replicates) if first else None
    zeros = zero_thresholds(study, records)
    settings = mark(setting_results(study, points, test, level), zeros, pathologies)
    links = {result.setting: f"s{i}" for i, result in enumerate(settings)}
    chosen = choose(study, records)
    comparison = compare(reader, chosen, settings, test, level, links)
    contrasts, lacking = contrast_results(config, settings, test)
    tables = [*table_1(config, settings, links), *table_2(config, settings, links), *reader_table(config, comparison)]
    tables += contrast_table(contrasts, links, test.patients if test else 0)
    tables = list(map(explained, tables))
    return Results(points, settings, test, chosen, comparison, contrasts, lacking, tables, links, zero_notes(zeros))


def _write(config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record], folder: str) -> None:
    """Write all files of the report but _MADE_OF, in place of those of an earlier report."""
    results = read_results(config, study, store, records)
    pathologies, level = config.data.pathologies, config.report.interval_level
    files: dict[str, bytes] = {}
    pictures: list[tuple[str, str]] = []
    masks = expert_masks(study, records)
    for figure in figures(pathologies, results.settings, results.comparison, masks) if results.points else []:
        drawn = draw(figure, level)
        files |= {f"{figure.name}.{kind}": content for kind, content in drawn.items()}
        files[f"{figure.name}.json"] = _json(figure.data())
        pictures.append((figure.title, _base64(drawn["png"])))
    rows = examples(study, store, records, results.chosen, pathologies)
    if rows:
        labels = {kind: model.point.label for kind, model in results.chosen.items()}
        drawn = draw_examples(rows, pathologies, labels)
        files |= {f"{_EXAMPLES}.{kind}": content for kind, content in drawn.items()}
        models = {kind: model.evaluation.inputs["segmentation"].address for kind, model in results.chosen.items()}
        files[f"{_EXAMPLES}.json"] = _json([entry for row in rows for entry in row.data(models)])
        title = "Figure 4: truth and chosen models, on the positive test image of median size"
        pictures.append((title, _base64(drawn["png"])))
    names, main = main_table(results.settings, "pooled", pathologies)
    num_printed = names.index(MEAN_COLUMN) + 1
    for table in results.tables:
        files |= {f"{table.name}.csv": table.csv(), f"{table.name}.md": table.markdown().encode()}
    below = "\n".join(["", RULE, *(f"  {line}" for line in results.zeros)]) if results.zeros else ""
    files |= {
        "index.html": _page(config, study, store, records, results, pictures).encode(),
        **long_files(results.points, results.settings, pathologies, level),
        "contrasts.json": _json(list(map(_contrast_data, results.contrasts))),
        "table.md": (markdown(main, names) + below).encode(),
        "table.txt": ("\n".join(aligned([row[:num_printed] for row in [names, *main]])) + below).encode(),
    }
    with own_files(store, folder, _LIST, files):
        for name, content in files.items():
            store.put(f"{folder}/{name}", content)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _contrast_data(contrast: ContrastResult) -> dict[str, Any]:
    """An entry of contrasts.json."""
    facts: dict[str, Any] = {
        "contrast": contrast.label(),
        "first": contrast.first.label,
        "second": contrast.second.label,
        "trials": contrast.trials,
        "note": contrast.reason,
    }
    difference = contrast.difference
    if difference:
        both = difference.both.interval
        intervals = {"trials": difference.trials, "patients": difference.patients, "both": both}
        facts |= {
            "difference": both.mean,
            "intervals": {kind: [interval.low, interval.high] for kind, interval in intervals.items()},
            "p": difference.p_value,
            "holm_p": contrast.holm_p,
            "carried_by_patients": difference.patients.n,
            "trials_for_80_percent_power": contrast.trials_needed,
            "patients_for_80_percent_power": contrast.patients_needed,
        }
    return facts


def _json(value: Any) -> bytes:
    return json.dumps(_finite(value), indent=1).encode()


def _finite(value: Any) -> Any:
    """A JSON value with None in place of every NaN, at any depth."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _page(
    config: StudyConfig,
    study: Study,
    store: Store,
    records: Mapping[str, Record],
    results: Results,
    pictures: Sequence[tuple[str, str]],
) -> str:
    """The text of index.html; `pictures` are (title, base64 of a PNG)."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("chexseg_ray", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    pathologies, level = config.data.pathologies, config.report.interval_level
    built = {result.point for result in results.points}
    benchmark = records.get(study.benchmark.address) if study.benchmark else None
    positive: list[tuple[str, int]] = []
    if results.test is not None:
        positive = list(zip(pathologies, results.test.positive.tolist(), strict=True))
    return environment.get_template("page.html.j2").render(
        title=config.report.title,
        built=len(results.points),
        planned=len(study.points),
        licence=licence_note(config),
        findings=findings(results.contrasts, results.comparison, results.chosen, level),
        failures=failures(study, store, built),
        undefined=[name for name, patients in positive if not patients],
        rejects=reject_rows(study, store, records),
        notes=note_rows(study, records),
        pictures=pictures,
        tables=results.tables,
        paper=is_paper(config),
        gap=gap_text(results.comparison, level) + paper_gap_text(config),
        caution=CAUTION,
        lacking=results.lacking,
        chosen=chosen_rows(results.chosen, results.settings, results.links),
        everything=[_everything(results, name, text, pathologies) for name, text in _TEXTS.items()],
        star=f"{STAR} {RULE}" if results.zeros else STAR,
        rule=RULE,
        zeros=results.zeros,
        test=results.test,
        positive=positive,
        intervals=interval_texts(level, overlap_texts(study, store, records)),
        pathologies=pathologies,
        splits=split_rows(study, records, pathologies),
        facts=making_facts(config, study, records),
        root=store.root,
        settings=[(results.links[s.setting], _record_rows(s)) for s in results.settings],
        benchmark=benchmark.address if benchmark else None,
    )


def _everything(results: Results, aggregation: str, text: str, pathologies: Sequence[str]) -> dict[str, Any]:
    """The table of all settings in one aggregation, each row with its anchor."""
    names, rows = main_table(results.settings, aggregation, pathologies)
    links = [results.links[result.setting] for result in results.settings]
    return {
        "title": f"All settings: IoU, {aggregation.replace('_', ' ')}",
        "text": text,
        "names": names,
        "labels": names.index(MEAN_COLUMN),
        "rows": list(zip(links, rows, strict=True)),
    }


def _record_rows(setting: SettingResult) -> list[list[str]]:
    """A row for each built trial: point, addresses of counts and weights, mIoU and seconds."""
    rows = []
    for result in setting.points:
        mean = mean_of_defined(result.iou["pooled"])
        segmentation = f"segmentation/{result.record.inputs['segmentation']}"
        seconds = f"{result.record.run['seconds']:.1f}"
        rows.append([result.point.label, result.record.address, segmentation, number(mean, 4), seconds])
    return rows or [[f"{setting.setting.label}: not built", "", "", "–", ""]]
