"""Files of torch.save in memory."""

import io

import torch


def saved(value: object, *, new: bool = True) -> bytes:
    """What torch.save writes: a zip, or the file of torch before 1.6."""
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()
