"""Read an X-ray of any format that is known by its bytes: JPEG, PNG or DICOM. One door for prediction and studies."""

import io
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from chexseg_ray.data.dicom import decode_dicom, dicom_size, is_dicom
from chexseg_ray.data.images import FEW_GREYS, MAX_PIXELS, Decoded, decode_grey, has_few_greys, header_size

WARNED = "warning of the decoder"  # the kind of a note that pydicom or Pillow gave
_LONGEST_WARNING = 160  # characters; a warning may quote a file's contents
_MOST_NAMED = 10  # images of a kind of note
_LIBRARIES = ("pydicom", "PIL")


def decode_xray(data: bytes, max_pixels: int = MAX_PIXELS, allowed: Collection[str] = ()) -> Decoded:
    """Decode a JPEG, PNG or DICOM file.

    Args:
        data: the whole file.
        max_pixels: the most pixels that an image may have.
        allowed: modalities of DICOM files that are decoded too, as in `decode_dicom`.

    Returns:
        The image, with notes: what decode_dicom notes, `FEW_GREYS`, and what pydicom or Pillow warns of.

    Raises:
        ImageError: as decode_grey and decode_dicom.
        InputError: it is a DICOM file and pydicom is not installed.
    """
    with _warnings() as texts:
        image = decode_dicom(data, max_pixels, allowed) if is_dicom(data) else Decoded(decode_grey(data, max_pixels))
    few = [FEW_GREYS] if has_few_greys(image.grey) else []
    return Decoded(image.grey, (*few, *image.notes, *(f"{WARNED}: {text}" for text in dict.fromkeys(texts))))


def xray_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of a JPEG, PNG or DICOM image from its header.

    Args:
        data: the file, or its first bytes.

    Returns:
        (height, width) in pixels, with the EXIF orientation applied; None when the header is unreadable.

    Raises:
        InputError: it is a DICOM file and pydicom is not installed.
    """
    with _warnings():
        return dicom_size(data) if is_dicom(data) else header_size(io.BytesIO(data))


def count_notes(notes: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Count the images of each kind of note.

    Args:
        notes: an image's name and a note on it, each.

    Returns:
        {kind: {images: their number, first: the names of the first ten}}, in the order of the notes; a warning's text
        follows the name. Plain JSON values.
    """
    texts: dict[str, dict[str, str]] = {}
    for name, note in notes:
        kind, _, text = note.partition(": ")
        texts.setdefault(kind, {}).setdefault(name, f"{name} ({text})" if text else name)
    return {
        kind: {"images": len(named), "first": list(islice(named.values(), _MOST_NAMED))}
        for kind, named in texts.items()
    }


def note_lines(counts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe counted notes, one line a kind.

    Args:
        counts: as `count_notes` returns them.

    Returns:
        Lines such as `hardly any grey values: 2 images (a, b)`, with three names at most.
    """
    lines = []
    for kind, found in counts.items():
        number, names = int(found["images"]), list(found["first"])[:3]
        more = ", ..." if number > len(names) else ""
        lines.append(f"{kind}: {number} image{'s' if number > 1 else ''} ({', '.join(names)}{more})")
    return lines


class _Collector(logging.Handler):
    """Appends the text of each log message to a list."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message."""
        self.texts.append(_short(record.getMessage()))


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Keep the decoders' warnings and log messages off the terminal, and yield the list that gets their texts."""
    texts: list[str] = []
    handler, loggers = _Collector(texts), [logging.getLogger(name) for name in _LIBRARIES]
    propagated = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield texts
        texts += [_short(str(warning.message)) for warning in caught]
    finally:
        for logger, propagate in zip(loggers, propagated, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def _short(text: str) -> str:
    """Return a text on one line, cut."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_WARNING else f"{text[:_LONGEST_WARNING]}..."
