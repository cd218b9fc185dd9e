"""Is a file whole? Lengths and checksums, for the formats whose readers pass over a cut or a flipped bit in silence."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from macl.utils.errors import RefusedCaseError

MAX_VOXELS = 2**30
"""The largest scan that is read, per channel: 512 × 512 × 4096."""

_CHUNK = 1 << 20

_JPEG_END = 0xD9
_JPEG_SCAN = 0xDA
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""What ends a scan's compressed data, in which 0xFF is followed by 0, a restart mark or padding."""


def require_size(size: tuple[int, ...]) -> None:
    """Refuse, before anything is allocated, a header that announces no voxel or more than `MAX_VOXELS`.

    Raises:
        RefusedCaseError: it does.
    """
    if any(count < 1 for count in size):
        raise RefusedCaseError(f"its header announces {_by(size)} voxels: there are no slices")
    voxels = 1
    for count in size:
        voxels *= count
    if voxels > MAX_VOXELS:
        raise RefusedCaseError(f"its header announces {_by(size)} voxels, more than the {MAX_VOXELS} that are read")


def require_length(found: int, expected: int) -> None:
    """Refuse data that is shorter or longer than its header says.

    Raises:
        RefusedCaseError: it is.
    """
    if found < expected:
        raise RefusedCaseError(f"it is truncated: {found} of {expected} bytes of image data are there")
    if found > expected:
        raise RefusedCaseError(f"it holds more image data than the {expected} bytes its header says")


def gunzip(path: Path, start: int = 0) -> Iterator[bytes]:
    """The bytes of a gzip file from byte `start` on, piece by piece; its CRC and length are checked at the end.

    Raises:
        RefusedCaseError: the file is no gzip, is cut off, or does not match its own checksum.
    """
    with path.open("rb") as file:
        file.seek(start)
        if file.read(2) != b"\x1f\x8b":
            raise RefusedCaseError("its name says gzip, but its contents are not")
        file.seek(start)
        yield from inflate(file, zlib.MAX_WBITS | 16)


def inflate(file: BinaryIO, window_bits: int) -> Iterator[bytes]:
    """The decompressed bytes of a zlib or gzip stream to the end of `file`, in pieces of at most 1 MiB.

    Raises:
        RefusedCaseError: the stream is cut off, damaged, or followed by something else.
    """
    decoder = zlib.decompressobj(window_bits)
    while data := file.read(_CHUNK):
        while data:
            if decoder.eof:
                if not data.strip(b"\0"):
                    break
                # A gzip file may hold several members one after the other.
                decoder = zlib.decompressobj(window_bits)
            yield _decompress(decoder, data, _CHUNK)
            data = decoder.unconsumed_tail or decoder.unused_data
    while not decoder.eof:
        piece = _decompress(decoder, b"", _CHUNK)
        if not piece and not decoder.eof:
            raise RefusedCaseError("it is truncated: its compressed data ends too early")
        yield piece


def checksum(pieces: Iterator[bytes], expected: int) -> int:
    """CRC-32 of `expected` bytes that come in pieces; stops as soon as there are more.

    Raises:
        RefusedCaseError: there are more or fewer, or reading them finds damage.
    """
    found = value = 0
    for piece in pieces:
        found += len(piece)
        value = zlib.crc32(piece, value)
        if found > expected:
            break
    require_length(found, expected)
    return value


def require_whole_png(path: Path) -> None:
    """Check every chunk's CRC, the end marker, and that the pixels decompress to the length the header says.

    Raises:
        RefusedCaseError: the file is no PNG, is damaged, or is of a kind that is not read.
    """
    data = path.read_bytes()
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise RefusedCaseError("its name says PNG, but its contents are not")
    chunks = list(_png_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or chunks[-1][0] != b"IEND" or len(chunks[0][1]) != 13:
        raise RefusedCaseError("it is truncated: the PNG does not end with its end marker")
    columns, rows, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    require_size((columns, rows))
    if colour in (4, 6) or any(kind == b"tRNS" for kind, _ in chunks):
        raise RefusedCaseError("it has a transparency channel: save it as grey or RGB")
    samples = 3 if colour == 2 else 1
    decoder = zlib.decompressobj()
    expected = rows * (1 + (columns * samples * depth + 7) // 8)
    # Interlacing adds a byte per row of each of its seven passes.
    most = expected + (columns + 7 * rows + 64 if interlaced else 1)
    pixels = _decompress(decoder, b"".join(body for kind, body in chunks if kind == b"IDAT"), most)
    if not decoder.eof and len(pixels) < most:
        raise RefusedCaseError("it is truncated: its compressed data ends too early")
    if not interlaced:
        require_length(len(pixels), expected)


def require_whole_jpeg(path: Path) -> None:
    """Follow a JPEG's segments to its end marker; it has no checksum, so a flipped bit within them goes unseen.

    Raises:
        RefusedCaseError: the file is no JPEG, is cut off, announces too much, or is neither grey nor RGB.
    """
    data = path.read_bytes()
    if data[:3] != b"\xff\xd8\xff":
        raise RefusedCaseError("its name says JPEG, but its contents are not")
    try:
        place = 2
        while (marker := data[place + 1]) != _JPEG_END:
            if data[place] != 0xFF:
                raise RefusedCaseError("it is damaged: a segment of the JPEG does not begin with a marker")
            length = int.from_bytes(data[place + 2 : place + 4], "big")
            if marker in _JPEG_FRAMES:
                rows, columns = struct.unpack(">HH", data[place + 5 : place + 9])
                require_size((columns, rows))
                if data[place + 9] not in (1, 3):
                    raise RefusedCaseError("it is neither grey nor RGB: save it as one of them")
            place += 2 + max(length, 2)
            if marker == _JPEG_SCAN:
                found = _JPEG_MARKER.search(data, place)
                place = found.start() if found else len(data)
    except (IndexError, struct.error):
        raise RefusedCaseError("it is truncated: the JPEG does not reach its end marker") from None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(data):
        if place + 12 > len(data):
            raise RefusedCaseError("it is truncated: the PNG ends within a chunk")
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        end = place + 12 + length
        if end > len(data):
            raise RefusedCaseError("it is truncated: the PNG ends within a chunk")
        if zlib.crc32(data[place + 4 : end - 4]) != struct.unpack(">I", data[end - 4 : end])[0]:
            raise RefusedCaseError("it is damaged: a checksum (CRC) of the PNG does not match")
        yield kind, data[place + 8 : end - 4]
        place = end
        if kind == b"IEND":
            return


def _decompress(decoder: zlib._Decompress, data: bytes, most: int) -> bytes:
    try:
        return decoder.decompress(data, most)
    except zlib.error as error:
        words = str(error).partition(": ")[2] or str(error)
        checksum = "incorrect data check" in words or "incorrect length check" in words
        raise RefusedCaseError(
            f"its compressed data is damaged ({'its checksum (CRC) does not match' if checksum else words})"
        ) from None


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
