"""Figure 4: the truth and the chosen models' masks on test images that were chosen without looking at any model."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.images import content_box
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.data.overlays import overlay
from chexseg_ray.report.drawing import figure_bytes, pyplot
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.choice import Chosen
from chexseg_ray.study.graph import Study, prediction

_PATHOLOGIES = ("Cardiomegaly", "Airspace Opacity")  # as in the paper
_KINDS = ("semi-supervised", "weakly supervised")


@dataclass(frozen=True)
class Example:
    """One row of the figure: a test image with masks of one pathology, at model resolution without padding.

    Args:
        pathology: of the masks.
        cxr_id: of the image.
        grey: uint8 [h, w].
        masks: {column: bool [h, w]}, `truth` first.
    """

    pathology: str
    cxr_id: str
    grey: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]

    def data(self, points: Mapping[str, str]) -> list[dict[str, Any]]:
        """Pixels and IoU of each column, as plain JSON values.

        Args:
            points: the model of each column, by the column's name.
        """
        truth = self.masks["truth"]
        return [
            {
                "pathology": self.pathology,
                "cxr_id": self.cxr_id,
                "column": name,
                "model": points.get(name),
                "pixels": int(mask.sum()),
                "iou": float((mask & truth).sum() / max(1, (mask | truth).sum())),
            }
            for name, mask in self.masks.items()
        ]


def examples(
    study: Study, store: Store, records: Mapping[str, Record], chosen: Mapping[str, Chosen], pathologies: Sequence[str]
) -> list[Example]:
    """Choose a test image for each of two pathologies: the one whose true mask is of median size, ties by id.

    Args:
        study: its graph.
        store: contains the records.
        records: of what is built, by address.
        chosen: the best setting of each kind.
        pathologies: K names.

    Returns:
        The rows of the figure; none before test images and a chosen model's predictions are built.
    """
    models: dict[str, Record] = {}
    for kind in _KINDS:
        record = store.find(prediction(chosen[kind].evaluation)) if kind in chosen else None
        if record is not None:
            models[kind] = record
    images = next((step for step in study.steps() if step.name == "images" and step.config["split"] == "test"), None)
    if not models or images is None or images.address not in records:
        return []
    images_record = records[images.address]
    size, columns = int(images.config["size"]), ["cxr_id", "height", "width", "rle"]
    truth = {row["cxr_id"]: row for row in store.read_tables(images_record, "masks/", columns).to_pylist()}
    predicted = {}
    for kind, record in models.items():
        rows = store.read_tables(record, "masks/", ["cxr_id", "rle"]).to_pylist()
        predicted[kind] = {row["cxr_id"]: row["rle"] for row in rows}
    out = []
    for name in [name for name in _PATHOLOGIES if name in pathologies] or pathologies[:2]:
        k = list(pathologies).index(name)
        areas = sorted((int(decode_rle(Rle(size, size, row["rle"][k])).sum()), cxr_id) for cxr_id, row in truth.items())
        positive = [cxr_id for area, cxr_id in areas if area]
        if not positive:
            continue
        cxr_id = positive[(len(positive) - 1) // 2]
        box = content_box(truth[cxr_id]["height"], truth[cxr_id]["width"], size)
        rles = {"truth": truth[cxr_id]["rle"]} | {kind: predicted[kind][cxr_id] for kind in models}
        masks = {column: decode_rle(Rle(size, size, rle[k]))[box.rows, box.columns] for column, rle in rles.items()}
        grey = _pixels(store, images_record, images, cxr_id)[box.rows, box.columns]
        out.append(Example(name, cxr_id, grey, masks))
    return out


def _pixels(store: Store, record: Record, images: Step, cxr_id: str) -> npt.NDArray[np.uint8]:
    """A letterboxed image of a step of images, uint8 [S, S]."""
    size = images.config["size"]
    for path in record.paths("images/"):
        ids = store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist()
        if cxr_id in ids:
            data = store.read_table(record, path, ["pixels"]).column("pixels")[ids.index(cxr_id)].as_py()
            return np.frombuffer(data, dtype=np.uint8).reshape(size, size)
    raise AssertionError(cxr_id)


def draw_examples(rows: Sequence[Example], pathologies: Sequence[str], names: Mapping[str, str]) -> dict[str, bytes]:
    """Draw the figure: in each row the X-ray, the truth, and each model's mask.

    Args:
        rows: from examples, at least one.
        pathologies: K names, whose order gives the colours.
        names: labels of the models, by column.

    Returns:
        {"png": ..., "svg": ...}.
    """
    plt = pyplot()
    columns = ["X-ray", *rows[0].masks]
    drawn, axes = plt.subplots(
        len(rows), len(columns), figsize=(2.7 * len(columns), 2.9 * len(rows)), layout="constrained", squeeze=False
    )
    for line, example in zip(axes, rows, strict=True):
        k = list(pathologies).index(example.pathology)
        for ax, column in zip(line, columns, strict=True):
            shown = np.zeros((k + 1, *example.grey.shape), dtype=bool)
            if column != "X-ray":
                shown[k] = example.masks[column]
            ax.imshow(overlay(example.grey, shown, 1), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            title = [column]
            if column in names:
                title += textwrap.wrap(names[column], 30)
            ax.set_title("\n".join(title), fontsize=8)
        line[0].set_ylabel(example.pathology, fontsize=9)
    return figure_bytes(drawn)
