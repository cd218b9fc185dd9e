"""Is a file whole? Checks lengths and checksums that the formats' libraries do not check."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from macl.utils.errors import RefusedCaseError
from macl.utils.text import format_size

MAX_VOXELS = 2**30
"""The largest scan that is read, per channel: 512 × 512 × 4096."""

_CHUNK = 1 << 20

_JPEG_END = 0xD9
_JPEG_SCAN = 0xDA
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""Ends a JPEG scan's compressed data, in which 0xFF precedes 0, a restart mark or padding."""


def require_size(size: tuple[int, ...]) -> None:
    """Refuse a header that announces no voxels or more than `MAX_VOXELS`, before memory is taken.

    Raises:
        RefusedCaseError: it does.
    """
    announced = f"its header announces {format_size(size)} voxels"
    if any(count < 1 for count in size):
        raise RefusedCaseError(f"{announced}: there are no slices")
    if math.prod(size) > MAX_VOXELS:
        raise RefusedCaseError(f"{announced}, more than the {MAX_VOXELS} that macl reads")


def require_length(actual: int, expected: int) -> None:
    """Refuse image data (lengths in bytes) that is shorter or longer than its header says.

    Raises:
        RefusedCaseError: it is.
    """
    if actual < expected:
        raise RefusedCaseError(
            f"it is truncated: {actual} of {expected} bytes of image data are there"
        )
    if actual > expected:
        raise RefusedCaseError(f"it has more image data than the {expected} bytes its header says")


def gunzip(path: Path, start: int = 0, piece_bytes: int = _CHUNK) -> Iterator[bytes]:
    """The bytes of a gzip file from byte `start` on, in pieces; checks CRC and length at the end.

    Raises:
        RefusedCaseError: the file is not gzip, is cut off, or does not match its own checksum.
    """
    with path.open("rb") as file:
        file.seek(start)
        if file.read(2) != b"\x1f\x8b":
            raise RefusedCaseError("its name says gzip, but its contents are not")
        file.seek(start)
        yield from inflate(file, zlib.MAX_WBITS | 16, piece_bytes)


def inflate(file: BinaryIO, window_bits: int, piece_bytes: int = _CHUNK) -> Iterator[bytes]:
    """The decompressed bytes of a zlib or gzip stream up to the file's end, in pieces.

    Raises:
        RefusedCaseError: the stream is cut off, damaged, or followed by something else.
    """
    decoder = zlib.decompressobj(window_bits)
    while data := file.read(piece_bytes):
        while data:
            if decoder.eof:
                if not data.strip(b"\0"):
                    break
                # A gzip file may hold several members one after the other.
                decoder = zlib.decompressobj(window_bits)
            yield _decompress(decoder, data, piece_bytes)
            data = decoder.unconsumed_tail or decoder.unused_data
    while not decoder.eof:
        piece = _decompress(decoder, b"", piece_bytes)
        if not piece and not decoder.eof:
            raise RefusedCaseError("it is truncated: its compressed data ends too early")
        yield piece


def checksum(pieces: Iterator[bytes], expected_bytes: int) -> int:
    """CRC-32 of data that comes in pieces; stops once there is more of it than expected.

    Raises:
        RefusedCaseError: its length is another than expected, or reading it finds damage.
    """
    length = value = 0
    for piece in pieces:
        length += len(piece)
        value = zlib.crc32(piece, value)
        if length > expected_bytes:
            break
    require_length(length, expected_bytes)
    return value


def require_whole_png(path: Path) -> None:
    """Check every chunk's CRC, the end marker, and the length of the decompressed pixels.

    Raises:
        RefusedCaseError: the file is not a PNG, is damaged, or has a transparency channel.
    """
    data = path.read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise RefusedCaseError("its name says PNG, but its contents are not")
    chunks = list(_png_chunks(data))
    kinds = [kind for kind, _ in chunks]
    if not kinds or (kinds[0], kinds[-1]) != (b"IHDR", b"IEND") or len(chunks[0][1]) != 13:
        raise RefusedCaseError("it is truncated: the PNG does not end with its end marker")
    columns, rows, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    require_size((columns, rows))
    if colour in (4, 6) or b"tRNS" in kinds:
        raise RefusedCaseError("it has a transparency channel: save it as grey or RGB")
    samples = 3 if colour == 2 else 1
    expected = rows * (1 + (columns * samples * depth + 7) // 8)
    # Interlacing adds a byte per row of each of its seven passes.
    limit = expected + (columns + 7 * rows + 64 if interlaced else 1)
    decoder = zlib.decompressobj()
    pixels = _decompress(decoder, b"".join(body for kind, body in chunks if kind == b"IDAT"), limit)
    if not decoder.eof and len(pixels) < limit:
        raise RefusedCaseError("it is truncated: its compressed data ends too early")
    if not interlaced:
        require_length(len(pixels), expected)


def require_whole_jpeg(path: Path) -> None:
    """Follow a JPEG's segments to its end marker; without a checksum, flipped bits go unseen.

    Raises:
        RefusedCaseError: the file is not a JPEG, is cut off, announces too much, or is neither grey
            nor RGB.
    """
    data = path.read_bytes()
    if data[:3] != b"\xff\xd8\xff":
        raise RefusedCaseError("its name says JPEG, but its contents are not")
    try:
        offset = 2
        while (marker := data[offset + 1]) != _JPEG_END:
            if data[offset] != 0xFF:
                raise RefusedCaseError("it is damaged: a JPEG segment does not begin with a marker")
            length = int.from_bytes(data[offset + 2 : offset + 4], "big")
            if marker in _JPEG_FRAMES:
                rows, columns = struct.unpack(">HH", data[offset + 5 : offset + 9])
                require_size((columns, rows))
                if data[offset + 9] not in (1, 3):
                    raise RefusedCaseError("it is neither grey nor RGB: save it as one of them")
            offset += 2 + max(length, 2)
            if marker == _JPEG_SCAN:
                next_marker = _JPEG_MARKER.search(data, offset)
                offset = next_marker.start() if next_marker else len(data)
    except (IndexError, struct.error):
        raise RefusedCaseError("it is truncated: the JPEG does not reach its end marker") from None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of every chunk up to the end marker."""
    start = 8
    while start < len(data):
        if start + 12 > len(data):
            raise RefusedCaseError("it is truncated: the PNG ends within a chunk")
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        end = start + 12 + length
        if end > len(data):
            raise RefusedCaseError("it is truncated: the PNG ends within a chunk")
        if zlib.crc32(data[start + 4 : end - 4]) != struct.unpack(">I", data[end - 4 : end])[0]:
            raise RefusedCaseError("it is damaged: a checksum (CRC) of the PNG does not match")
        yield kind, data[start + 8 : end - 4]
        start = end
        if kind == b"IEND":
            return


def _decompress(decoder: zlib._Decompress, data: bytes, limit: int) -> bytes:
    try:
        return decoder.decompress(data, limit)
    except zlib.error as error:
        reason = str(error).partition(": ")[2] or str(error)
        if "incorrect data check" in reason or "incorrect length check" in reason:
            reason = "its checksum (CRC) does not match"
        raise RefusedCaseError(f"its compressed data is damaged ({reason})") from None
