"""The report of a study: results.csv, tables, figures, and one self-contained HTML page. From records alone."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.choice import Chosen, choose
from chexseg_ray.config import StudyConfig
from chexseg_ray.pipeline import Study, SweepPoint, prediction
from chexseg_ray.progress import say
from chexseg_ray.report.contrasts import ContrastResult, contrast_results
from chexseg_ray.report.examples import draw_examples, examples
from chexseg_ray.report.facts import expert_masks, failures, licence_note, making_facts, overlap_words, reject_rows, split_rows
from chexseg_ray.report.figures import draw, figures
from chexseg_ray.report.paper import CAUTION, is_paper
from chexseg_ray.report.paper import gap_words as paper_gap
from chexseg_ray.report.paper_tables import Table, table_1, table_2
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
from chexseg_ray.report.tables import STAR, header, long_csv, main_rows, markdown, number, terminal
from chexseg_ray.report.verdicts import chosen_rows, contrast_table, findings, gap_words, interval_words

_MADE_OF = "made_of.sha256"
_EXAMPLES = "figure4_examples"
_TEXT = {
    "pooled": "Pixels summed over the test set, then the ratio, at model resolution without padding: the paper's IoU. "
    "Undefined (a dash) where the test set's truth has no pixel, and left out of the mean.",
    "per_image": "The ratio of each image at its original resolution, then the mean over images where prediction or truth is not empty.",
    "per_image_true_pos_only": "CheXlocalize's default: also without images where either prediction or truth is empty, so that "
    "missed findings do not count; a pathology with no such image is a dash, and one that some trials define says how many. A trial's mean is "
    "over the pathologies that it defines.",
}


@dataclass(frozen=True)
class Results:
    """Everything that the report shows, in numbers."""

    points: list[PointResult]
    settings: list[SettingResult]
    test: TestSet | None
    chosen: Mapping[str, Chosen]
    comparison: Comparison
    contrasts: list[ContrastResult]
    lacking: list[str]
    tables: list[Table]
    links: Mapping[SweepPoint, str]


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
    made_of = _made_of(config, study, store, records)
    if not (unchanged and _there(store, folder, made_of)):
        store.delete(f"{folder}/{_MADE_OF}")
        _write(config, study, store, records, folder)
        store.put(f"{folder}/{_MADE_OF}", made_of)
    say(store.get(f"{folder}/table.txt").decode())
    built = sum(step.address in records for _, step in study.points)
    say(f"{built} of {len(study.points)} points; report: {store.shown(folder)}/index.html")


def _made_of(config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record]) -> bytes:
    """What a report depends on: the records by attempt, those of the chosen models' predictions too, the config's words, the code of this room."""
    package = Path(__file__).parent.parent
    sources = [path for room in ("report", "evaluation", "data") for path in sorted((package / room).glob("*.*")) if path.is_file()]
    sources += [package / "choice.py", package / "segmentation" / "mixing.py"]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    predictions = store.find_all(prediction(own.evaluation) for own in choose(study, records).values())
    attempts = {address: record.attempt for address, record in {**records, **predictions}.items()}
    facts = {"code": code, "config": config.model_dump(mode="json", exclude={"compute"}), "records": attempts}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest().encode()


def _there(store: Store, folder: str, made_of: bytes) -> bool:
    try:
        said = store.get(f"{folder}/{_MADE_OF}")
    except FileNotFoundError:
        return False
    return said == made_of and {"index.html", "results.csv", "table.md", "table.txt"} <= set(store.names(folder))


def read_results(config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record]) -> Results:
    """All numbers of a study, whole or half, from what its store holds."""
    pathologies, level = config.data.pathologies, config.report.interval_level
    points = point_results(study, store, records, pathologies)
    benchmark = records.get(study.benchmark.address) if study.benchmark else None
    reader = measured(store, study.points[0][0], benchmark, pathologies) if benchmark else None
    first = points[0].record if points else benchmark
    test = read_test_set(store, first, pathologies, config.report.bootstrap_replicates) if first else None
    settings = setting_results(study, points, test, level)
    links = {result.setting: f"s{i}" for i, result in enumerate(settings)}
    chosen = choose(study, records)
    comparison = compare(reader, chosen, settings, test, level, links)
    contrasts, lacking = contrast_results(config, settings, test)
    tables = [*table_1(config, settings, links), *table_2(config, settings, links), *reader_table(config, comparison)]
    tables += contrast_table(contrasts, links, test.patients if test else 0)
    return Results(points, settings, test, chosen, comparison, contrasts, lacking, tables, links)


def _write(config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record], folder: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    results = read_results(config, study, store, records)
    pathologies, level = config.data.pathologies, config.report.interval_level
    files: dict[str, bytes] = {}
    pictures: list[tuple[str, str]] = []
    masks = expert_masks(study, records)
    for figure in figures(pathologies, results.settings, results.comparison, masks) if results.points else []:
        drawn = draw(figure, level)
        files |= {f"{figure.name}.{kind}": content for kind, content in drawn.items()}
        files[f"{figure.name}.json"] = _json(figure.data())
        pictures.append((figure.title, base64.b64encode(drawn["png"]).decode()))
    if rows := examples(study, store, records, results.chosen, pathologies):
        drawn = draw_examples(rows, pathologies, {kind: own.point.label for kind, own in results.chosen.items()})
        files |= {f"{_EXAMPLES}.{kind}": content for kind, content in drawn.items()}
        models = {kind: own.evaluation.inputs["segmentation"].address for kind, own in results.chosen.items()}
        files[f"{_EXAMPLES}.json"] = _json([line for row in rows for line in row.data(models)])
        pictures.append(("Figure 4: truth and chosen models, on the positive test image of median size", base64.b64encode(drawn["png"]).decode()))
    names, main = header(pathologies), main_rows(results.settings, "pooled", len(pathologies))
    for table in results.tables:
        files |= {f"{table.name}.csv": table.csv(), f"{table.name}.md": table.markdown().encode()}
    files |= {
        "index.html": _page(config, study, store, records, results, pictures).encode(),
        "results.csv": long_csv(results.points, results.settings, pathologies, level).encode(),
        "contrasts.json": _json(list(map(_contrast_data, results.contrasts))),
        "table.md": markdown(main, names).encode(),
        "table.txt": terminal(main, names, names.index("mIoU (interval)") + 1).encode(),
    }
    for name in set(store.names(folder)) - set(files):  # what an earlier report had and this one has not
        store.delete(f"{folder}/{name}")
    for name, content in files.items():
        store.put(f"{folder}/{name}", content)


def _contrast_data(own: ContrastResult) -> dict[str, Any]:
    facts: dict[str, Any] = {"contrast": own.label(), "first": own.first.label, "second": own.second.label, "trials": own.trials, "note": own.reason}
    if own.difference:
        kinds = {"trials": own.difference.trials, "patients": own.difference.patients, "both": own.difference.both.interval}
        facts |= {"difference": own.difference.both.interval.mean, "intervals": {kind: [i.low, i.high] for kind, i in kinds.items()}}
        facts |= {"p": own.difference.p_value, "holm_p": own.holm_p, "carried_by_patients": own.difference.patients.n}
        facts |= {"trials_for_80_percent_power": own.trials_needed, "patients_for_80_percent_power": own.patients_needed}
    return facts


def _json(value: Any) -> bytes:
    return json.dumps(_finite(value), indent=1).encode()


def _finite(value: Any) -> Any:
    """NaN as null, throughout."""
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def _page(
    config: StudyConfig, study: Study, store: Store, records: Mapping[str, Record], results: Results, pictures: Sequence[tuple[str, str]]
) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("chexseg_ray", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    built = {result.point for result in results.points}
    level, benchmark = config.report.interval_level, records.get(study.benchmark.address) if study.benchmark else None
    shown_by = results.test.positive.tolist() if results.test else []
    undefined = [name for name, patients in zip(config.data.pathologies, shown_by, strict=False) if not patients]
    return environment.get_template("page.html.j2").render(
        title=config.report.title,
        built=len(results.points),
        planned=len(study.points),
        licence=licence_note(config),
        findings=findings(results.contrasts, results.comparison, results.chosen, level),
        failures=failures(study, store, built),
        undefined=undefined,
        rejects=reject_rows(study, store, records),
        pictures=pictures,
        tables=results.tables,
        paper=is_paper(config),
        gap=gap_words(results.comparison, level) + paper_gap(config),
        caution=CAUTION,
        lacking=results.lacking,
        chosen=chosen_rows(results.chosen, results.settings, results.links),
        names=header(config.data.pathologies),
        everything=[_everything(results, name, text, len(config.data.pathologies)) for name, text in _TEXT.items()],
        star=STAR,
        test=results.test,
        positive=[] if results.test is None else list(zip(config.data.pathologies, results.test.positive.tolist(), strict=True)),
        intervals=interval_words(level, overlap_words(study, store, records)),
        pathologies=config.data.pathologies,
        splits=split_rows(study, records, config.data.pathologies),
        facts=making_facts(config, study, records),
        root=store.root,
        settings=[(results.links[s.setting], _record_rows(s)) for s in results.settings],
        benchmark=benchmark.address if benchmark else None,
    )


def _everything(results: Results, aggregation: str, text: str, count: int) -> dict[str, Any]:
    """The table of all settings in one aggregation, each row with its anchor."""
    rows = main_rows(results.settings, aggregation, count)
    links = [results.links[own.setting] for own in results.settings]
    return {"title": f"All settings: IoU, {aggregation.replace('_', ' ')}", "text": text, "rows": list(zip(links, rows, strict=True))}


def _record_rows(setting: SettingResult) -> list[list[str]]:
    """Point, counts, weights, mIoU and seconds of each built trial."""
    rows = []
    for own in setting.points:
        mean = mean_of_defined(own.iou["pooled"])
        segmentation = f"segmentation/{own.record.inputs['segmentation']}"
        rows.append([own.point.label, own.record.address, segmentation, number(mean, 4), f"{own.record.run['seconds']:.1f}"])
    return rows or [[f"{setting.setting.label}: not built", "", "", "–", ""]]
