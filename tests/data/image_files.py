"""Image files in memory."""

import io

import numpy as np
from PIL import Image


def image_bytes(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image's file, as Pillow saves it."""
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()
