"""NanoVDB files: segments of grids, plain or compressed with zlib.

Grids come out in memory that grids may lie in, of files that allow it mapped and not copied.
A mapped file must not shrink while a grid of it is in use: replace files by renaming, as
`write_file` does, never by rewriting.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hyprstream.errors import CorruptGridError, StorageFullError, UnsupportedFormatError
from hyprstream.vdb.nanovdb import structures as s
from hyprstream.vdb.nanovdb.checksum import checksums
from hyprstream.vdb.nanovdb.reader import open_grid
from hyprstream.vdb.nanovdb.view import GridView

Codec = Literal["none", "zip"]

MAX_GRID_BYTES = 4 << 30
"""Most that the grids of one file may take, unless the caller says otherwise."""

_CODECS: tuple[Codec, ...] = ("none", "zip")
_NO_CODEC, _ZIP, _BLOSC = range(3)
_MOST_PER_BYTE = 1032
"""zlib's best ratio: more is not in a stream, so it is not allocated."""
_LENGTH = np.dtype([("length", "<u8")])
"""What stands before a compressed grid."""
_CHUNK_BYTES = 1 << 16  # of what is packed; at most 64 MB of what comes out
_ZIP_LEVEL = 6


def write_bytes(grids: Sequence[s.Bytes], codec: Codec = "zip") -> bytes:
    """Return the file that holds these grids, which were made by `writer`."""
    return b"".join(part for grid in grids for part in _segment(grid, codec))


def write_file(file: Path, grids: Sequence[s.Bytes], codec: Codec = "zip") -> None:
    """Write a file, whole or not at all; readers of the one before keep what they mapped.

    Raises:
        StorageFullError: It cannot be written.
    """
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as stream:
            for grid in grids:
                stream.writelines(_segment(grid, codec))
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut could leave the name of an empty file
        new.replace(file)
    except OSError as error:
        raise StorageFullError(
            f"{file} cannot be written: {error.strerror}",
            hint="Check that there is room and that the folder may be written to.",
        ) from error
    finally:
        new.unlink(missing_ok=True)


def read_bytes(
    data: bytes | memoryview, file: object = "the grid", max_bytes: int = MAX_GRID_BYTES
) -> list[GridView]:
    """Read all grids of a file's bytes.

    Args:
        data: The whole file.
        file: What errors call it.
        max_bytes: Most that the grids may take.

    Raises:
        CorruptGridError: The bytes are no sound file of sound grids.
        UnsupportedFormatError: A version, grid type or codec is not read here.
    """
    return list(_grids(np.frombuffer(data, np.uint8), file, max_bytes))


def open_file(file: Path, max_bytes: int = MAX_GRID_BYTES) -> list[GridView]:
    """Read all grids of a file; what is not compressed stays mapped where it lies aligned.

    What is written to a mapped grid is seen by this process only and never reaches the file.

    Raises:
        CorruptGridError: It cannot be read, or is no sound file of sound grids.
        UnsupportedFormatError: A version, grid type or codec is not read here.
    """
    try:
        data = np.memmap(file, np.uint8, mode="c") if file.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise CorruptGridError(f"it cannot be read: {error.strerror}", file) from error
    return list(_grids(data.view(np.ndarray), file, max_bytes))


def name_key(name: bytes) -> int:
    """Return the hash by which tools find a grid of a name."""
    key = 0
    for character in name:
        key = (key * 67 + character + (key >> 56)) % 2**64
    return key


def _segment(grid: s.Bytes, codec: Codec) -> Iterator[bytes | memoryview]:
    """Yield the parts of a segment of one grid; the grid's own bytes are left as they are."""
    header = grid[: s.TREE_AT].copy()
    fields = header.view(s.GRID)[0]
    fields["grid_index"], fields["grid_count"] = 0, 1
    fields["checksum"] = checksums(grid, header)
    parts = [header.data, grid[s.TREE_AT :].data]
    number = _CODECS.index(codec)
    if number == _ZIP:
        packer = zlib.compressobj(_ZIP_LEVEL)
        packed = b"".join([*map(packer.compress, parts), packer.flush()])
        parts = [np.array([len(packed)], "<u8").data, memoryview(packed)]
    name = bytes(fields["grid_name"]) + b"\0"
    # With NULs up to a multiple of the alignment the grid lies aligned in the file.
    name = name.ljust(s.padded(len(name)), b"\0")
    file_header = np.zeros(1, s.FILE_HEADER)[0]
    old = int(fields["magic"]) == s.MAGIC_OLD
    file_header["magic"] = s.MAGIC_OLD if old else s.MAGIC_FILE
    file_header["version"], file_header["grid_count"] = fields["version"], 1
    file_header["codec"] = number
    yield file_header.tobytes()
    metadata = _metadata(grid, fields)
    metadata["file_size"] = sum(part.nbytes for part in parts)
    metadata["name_size"], metadata["codec"] = len(name), number
    yield metadata.tobytes()
    yield name
    yield from parts


def _metadata(grid: s.Bytes, header: np.void) -> np.void:
    metadata: np.void = np.zeros(1, s.FILE_METADATA)[0]
    tree = grid[s.TREE_AT : s.ROOT_AT].view(s.TREE)[0]
    root = grid[s.ROOT_AT :][: s.ROOT_FLOAT.itemsize].view(s.ROOT_FLOAT)[0]
    for field in ("grid_size", "grid_type", "grid_class", "world_bbox", "voxel_size", "version"):
        metadata[field] = header[field]
    metadata["name_key"] = name_key(bytes(header["grid_name"]))
    metadata["voxel_count"] = tree["voxel_count"]
    metadata["index_bbox"][:3], metadata["index_bbox"][3:] = root["bbox_min"], root["bbox_max"]
    counts = [tree[f"node_count_{level}"] for level in ("leaf", "lower", "upper")]
    metadata["node_count"] = [*counts, 1]
    metadata["tile_count"] = tree["tile_count"]
    return metadata


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one grid lies in a file, and how long it is unpacked."""

    start: int
    end: int
    grid_size: int
    packed: bool


def _grids(data: s.Bytes, file: object, max_bytes: int) -> Iterator[GridView]:
    if not len(data):
        raise CorruptGridError("it is empty", file)
    at, total_bytes = 0, 0
    while at < len(data):
        for entry in _entries(data, at, file):
            at = entry.end
            total_bytes += entry.grid_size
            if total_bytes > max_bytes:
                raise CorruptGridError(f"its grids take over {max_bytes} bytes", file)
            yield open_grid(_unpacked(data, entry, file), file)


def _entries(data: s.Bytes, at: int, file: object) -> list[_Entry]:
    """List the grids of the segment that begins at `at`."""
    header = _structure(data, at, s.FILE_HEADER, file)
    if int(header["magic"]) not in {s.MAGIC_OLD, s.MAGIC_FILE}:
        raise CorruptGridError("it does not begin as a NanoVDB file does", file)
    codec, count = int(header["codec"]), int(header["grid_count"])
    if codec not in {_NO_CODEC, _ZIP}:
        what = "Blosc" if codec == _BLOSC else f"codec {codec}"
        raise UnsupportedFormatError(
            f"{file} is compressed with {what}", hint="Convert it with nanovdb_convert --zip."
        )
    if not count:
        raise CorruptGridError("a segment of it holds no grid", file)
    at += s.FILE_HEADER.itemsize
    sizes = []
    for _ in range(count):
        metadata = _structure(data, at, s.FILE_METADATA, file)
        sizes.append((int(metadata["grid_size"]), int(metadata["file_size"])))
        at += s.FILE_METADATA.itemsize + int(metadata["name_size"])
    entries = []
    for grid_size, file_size in sizes:
        start, stored_size = at, file_size
        if codec == _ZIP:
            stored_size = int(_structure(data, at, _LENGTH, file)["length"])
            start += _LENGTH.itemsize
            # Warp does not count the length itself.
            if file_size not in {stored_size, stored_size + _LENGTH.itemsize}:
                raise CorruptGridError("a compressed grid has two lengths", file)
        at = start + stored_size
        entries.append(_Entry(start, at, grid_size, codec == _ZIP))
        if at > len(data):
            raise CorruptGridError(f"it ends {at - len(data)} bytes early", file)
    return entries


def _structure(data: s.Bytes, at: int, kind: np.dtype[np.void], file: object) -> np.void:
    end = at + kind.itemsize
    if end > len(data):
        raise CorruptGridError(f"it ends {end - len(data)} bytes early", file)
    found: np.void = np.frombuffer(data[at:end].tobytes(), kind)[0]
    return found


def _unpacked(data: s.Bytes, entry: _Entry, file: object) -> s.Bytes:
    stored = data[entry.start : entry.end]
    if not entry.packed:
        if entry.grid_size != len(stored):
            raise CorruptGridError("a grid that is not compressed has two lengths", file)
        return stored
    if entry.grid_size > len(stored) * _MOST_PER_BYTE:
        raise CorruptGridError("a compressed grid is longer than it can be", file)
    grid = s.aligned_zeros(entry.grid_size)
    unpacker = zlib.decompressobj()
    packed = stored.data
    filled = 0
    try:
        for start in range(0, len(packed), _CHUNK_BYTES):
            room = len(grid) - filled
            part = unpacker.decompress(packed[start : start + _CHUNK_BYTES], room + 1)
            if len(part) > room:
                raise CorruptGridError("a compressed grid is longer than it states", file)
            grid[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
    except zlib.error as error:
        raise CorruptGridError("a compressed grid cannot be unpacked", file) from error
    if filled != len(grid) or not unpacker.eof or unpacker.unused_data:
        raise CorruptGridError("a compressed grid is shorter than it states", file)
    return grid
