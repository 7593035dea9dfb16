"""Figure 4: the truth and the chosen models' masks on test images that no model had a say in choosing."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.artifacts import Record, Step, Store
from chexseg_ray.choice import Chosen
from chexseg_ray.data.images import content_box
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.data.overlays import overlay
from chexseg_ray.pipeline import Study, prediction
from chexseg_ray.report.figures import figure_bytes

_SHOWN = ("Cardiomegaly", "Airspace Opacity")  # as in the paper
_KINDS = ("semi-supervised", "weakly supervised")


@dataclass(frozen=True)
class Example:
    """One row of the figure: a test image, and {column: mask bool [h, w]} of one pathology at model resolution, without padding."""

    pathology: str
    cxr_id: str
    grey: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]

    def data(self, points: Mapping[str, str]) -> list[dict[str, Any]]:
        """What the row shows in numbers: pixels and IoU of each column; `points` names the model of each."""
        truth = self.masks["truth"]
        return [
            {"pathology": self.pathology, "cxr_id": self.cxr_id, "column": name, "model": points.get(name), "pixels": int(mask.sum()),
             "iou": float((mask & truth).sum() / max(1, (mask | truth).sum()))}
            for name, mask in self.masks.items()
        ]  # fmt: skip


def examples(study: Study, store: Store, records: Mapping[str, Record], chosen: Mapping[str, Chosen], pathologies: Sequence[str]) -> list[Example]:
    """For each of two pathologies the test image whose true mask is of median size (ties by id); empty until predictions are built."""
    models = {kind: record for kind in _KINDS if kind in chosen and (record := store.find(prediction(chosen[kind].evaluation)))}
    images = next((step for step in study.steps() if step.name == "images" and step.config["split"] == "test"), None)
    if not models or images is None or images.address not in records:
        return []
    size, columns = int(images.config["size"]), ["cxr_id", "height", "width", "rle"]
    truth = {row["cxr_id"]: row for row in store.read_tables(records[images.address], "masks/", columns).to_pylist()}
    predicted = {
        kind: {row["cxr_id"]: row["rle"] for row in store.read_tables(r, "masks/", ["cxr_id", "rle"]).to_pylist()} for kind, r in models.items()
    }
    out = []
    for name in [name for name in _SHOWN if name in pathologies] or pathologies[:2]:
        k = list(pathologies).index(name)
        areas = sorted((int(decode_rle(Rle(size, size, row["rle"][k])).sum()), cxr_id) for cxr_id, row in truth.items())
        positive = [cxr_id for area, cxr_id in areas if area]
        if positive:
            cxr_id = positive[(len(positive) - 1) // 2]
            own = {"truth": truth[cxr_id]["rle"]} | {kind: predicted[kind][cxr_id] for kind in models}
            box = content_box(truth[cxr_id]["height"], truth[cxr_id]["width"], size)
            masks = {column: decode_rle(Rle(size, size, rle[k]))[box.rows, box.columns] for column, rle in own.items()}
            out.append(Example(name, cxr_id, _pixels(store, records[images.address], images, cxr_id)[box.rows, box.columns], masks))
    return out


def _pixels(store: Store, record: Record, images: Step, cxr_id: str) -> npt.NDArray[np.uint8]:
    size = images.config["size"]
    for path in record.paths("images/"):
        ids = store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist()
        if cxr_id in ids:
            data = store.read_table(record, path, ["pixels"]).column("pixels")[ids.index(cxr_id)].as_py()
            return np.frombuffer(data, dtype=np.uint8).reshape(size, size)
    raise AssertionError(cxr_id)


def draw_examples(rows: Sequence[Example], pathologies: Sequence[str], names: Mapping[str, str]) -> dict[str, bytes]:
    """The rows as PNG and SVG: X-ray, truth, each model with what `names` calls it."""
    from matplotlib import pyplot as plt

    columns = ["X-ray", *rows[0].masks]
    drawn, axes = plt.subplots(len(rows), len(columns), figsize=(2.7 * len(columns), 2.9 * len(rows)), layout="constrained", squeeze=False)
    for line, example in zip(axes, rows, strict=True):
        place = list(pathologies).index(example.pathology)
        for ax, column in zip(line, columns, strict=True):
            shown = np.zeros((place + 1, *example.grey.shape), dtype=bool)
            if column != "X-ray":
                shown[place] = example.masks[column]
            ax.imshow(overlay(example.grey, shown, 1), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title("\n".join([column, *(textwrap.wrap(names[column], 30) if column in names else [])]), fontsize=8)
        line[0].set_ylabel(example.pathology, fontsize=9)
    return figure_bytes(drawn)
