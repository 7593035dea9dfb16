"""Refuse the compressed pixels of a DICOM file that would inflate to more than the image that its header describes."""

import struct
from collections.abc import Iterator
from typing import Any

from chexseg_ray.data.images import ImageError

_RLE = "1.2.840.10008.1.2.5"
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_LONGEST_RUN = 128  # bytes; an encoder may end an RLE segment with a run beyond its last pixel
# JPEG: markers of frame headers (also of JPEG-LS), of the start of a scan, and those without a length
_FRAME_HEADERS = (*(code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)), 0xF7)
_START_OF_SCAN, _ALONE = 0xDA, (0x01, *range(0xD0, 0xD9))
_JP2 = b"\x00\x00\x00\x0cjP  "  # the first box of a file that holds a codestream
_JPEG_2000 = b"\xff\x4f\xff\x51"  # the start of a codestream: SOC and SIZ


def refuse_inflating(dataset: Any, max_pixels: int) -> None:
    """Check the size that a data set's compressed pixels would have, without decoding them.

    Args:
        dataset: of pydicom, with a transfer syntax, PixelData of one frame, Rows and Columns.
        max_pixels: the most pixels that an image may have.

    Raises:
        ImageError: `too_large`, a frame's own header names more than `max_pixels` pixels; `undecodable`, it names more
            than Rows x Columns, RLE segments hold more than that, or a JP2 frame has no end; `multiframe`, there is a
            second frame.
        ValueError: the pixels are not stored in frames.
    """
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if syntax in _UNCOMPRESSED:
        return
    from pydicom.encaps import generate_frames

    size = int(dataset.Rows) * int(dataset.Columns)
    tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (tables[0], tables[1]) if all(tables) else None
    frames = generate_frames(dataset.PixelData, number_of_frames=1, extended_offsets=extended)
    frame = next(frames, b"")
    if next(frames, None) is not None:  # pydicom would decode all of them
        raise ImageError("multiframe")
    if syntax == _RLE:
        if any(_inflated_bytes(segment, size + _LONGEST_RUN) > size + _LONGEST_RUN for segment in _segments(frame)):
            raise ImageError("undecodable")
        return
    largest = max(_pixels_in_headers(frame), default=0)
    if largest > max_pixels:
        raise ImageError("too_large")
    if largest > size:
        raise ImageError("undecodable")


def _codestream(frame: bytes) -> int:
    """Find the JPEG 2000 codestream of a frame, which begins with it, or has it in a box of a JP2 file.

    Returns:
        The place of its first byte; the frame's length or more where there is none.

    Raises:
        ImageError: a box is shorter than its own head; pydicom would look for the next one for ever.
    """
    if frame.startswith(_JPEG_2000):
        return 0
    at = 12 if frame.startswith(_JP2) else len(frame)
    while at < len(frame):
        length, kind = int.from_bytes(frame[at : at + 4], "big"), frame[at + 4 : at + 8]
        if kind == b"jp2c":
            return at + (16 if length == 1 else 8)  # after 1, 8 more bytes have the length
        if length < 8:
            raise ImageError("undecodable")
        at += length
    return at


def _segments(frame: bytes) -> Iterator[bytes]:
    """Yield the segments of an RLE frame (PS3.5 G.5): its header has their number and up to 15 offsets."""
    count, *offsets = struct.unpack("<16L", frame[:64])
    ends = [*offsets[1:count], len(frame)]
    for start, end in zip(offsets[:count], ends, strict=False):
        yield frame[start:end]


def _inflated_bytes(segment: bytes, most: int) -> int:
    """Count the bytes that an RLE segment inflates to, up to the first run that exceeds `most`."""
    total = at = 0
    while at < len(segment) and total <= most:
        code = segment[at]
        if code < 128:  # that many bytes and one follow
            total, at = total + code + 1, at + code + 2
        elif code > 128:  # the next byte is repeated
            total, at = total + 257 - code, at + 2
        else:
            at += 1
    return total


def _pixels_in_headers(frame: bytes) -> Iterator[int]:
    """Yield height x width of each header in a JPEG, JPEG-LS or JPEG 2000 frame; nothing for other bytes."""
    at = _codestream(frame)
    if len(frame) >= at + 24:
        right, bottom, left, top = struct.unpack(">4L", frame[at + 8 : at + 24])
        yield max(0, right - left) * max(0, bottom - top)
    at = 2 if frame.startswith(b"\xff\xd8") else -1
    while 0 <= at < len(frame) - 8:
        at = frame.find(b"\xff", at)  # decoders skip what lies between markers
        code = frame[at + 1] if 0 <= at < len(frame) - 8 else _START_OF_SCAN
        if code == _START_OF_SCAN:
            return
        if code in _FRAME_HEADERS:
            height, width = struct.unpack(">HH", frame[at + 5 : at + 9])
            yield height * width
        if code in (0x00, 0xFF):  # a stuffed or a fill byte
            at += 1
        elif code in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
