"""Checksums of grids: CRC-32, over the headers and over the rest.

They are written when a grid goes to a file, and not kept up while one is edited in memory.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from hyprstream.vdb.nanovdb.structures import (
    FLOAT_LAYOUT,
    GRID,
    INDEX_LAYOUT,
    LAST_OLD_CHECKSUM,
    LOWER,
    NO_CHECKSUM,
    ROOT_AT,
    TREE,
    TREE_AT,
    UPPER,
    Bytes,
)

_COVERED_FROM = 16  # behind magic and checksum
_BLOCK_BYTES = 4096


def checksums(buffer: Bytes, header: Bytes | None = None) -> tuple[int, int]:
    """Compute what the header of a sound grid should hold.

    Up to version 32.6 only the headers are covered ("half"): old and new readers agree on
    that one alone.

    Args:
        buffer: The grid.
        header: What its first structure will be, if not what it is.
    """
    data = buffer.data
    first = buffer[:TREE_AT] if header is None else header
    head = zlib.crc32(first.data[_COVERED_FROM:])
    if int(_header(buffer)["version"]) <= LAST_OLD_CHECKSUM:
        return zlib.crc32(data[TREE_AT : _end_of_headers(buffer)], head), NO_CHECKSUM
    return zlib.crc32(data[TREE_AT:ROOT_AT], head), _crc_of_blocks(data[ROOT_AT:])


def is_intact(buffer: Bytes) -> bool:
    """Tell whether a grid's bytes are what its checksum was made from, as far as it has one."""
    header = _header(buffer)
    head, tail = (int(part) for part in header["checksum"])
    if head == tail == NO_CHECKSUM:
        return True
    expected_head, expected_tail = checksums(buffer)
    if head != expected_head:
        return False
    if tail == NO_CHECKSUM:
        return True
    if int(header["version"]) > LAST_OLD_CHECKSUM:
        return tail == expected_tail
    return tail in _old_tails(buffer)


def _header(buffer: Bytes) -> np.void:
    header: np.void = buffer[: GRID.itemsize].view(GRID)[0]
    return header


def _tree(buffer: Bytes) -> np.void:
    tree: np.void = buffer[TREE_AT:ROOT_AT].view(TREE)[0]
    return tree


def _end_of_headers(buffer: Bytes) -> int:
    return TREE_AT + int(_tree(buffer)["node_offset_upper"])


def _crc_of_blocks(data: memoryview) -> int:
    """CRC of the CRCs of whole blocks; the last takes the remainder in.

    As in the official code, less than one block is not covered at all.
    """
    num_blocks = len(data) // _BLOCK_BYTES
    ends = [*range(_BLOCK_BYTES, num_blocks * _BLOCK_BYTES, _BLOCK_BYTES), len(data)]
    starts = range(0, num_blocks * _BLOCK_BYTES, _BLOCK_BYTES)
    crcs = [zlib.crc32(data[start:end]) for start, end in zip(starts, ends, strict=False)]
    return zlib.crc32(np.array(crcs, "<u4").tobytes())


def _old_tails(buffer: Bytes) -> tuple[int, int]:
    """CRCs of the nodes' CRCs: the platform that wrote them decided on 8 or 4 bytes for each."""
    tree, data = _tree(buffer), buffer.data
    layouts = {layout.grid_type: layout for layout in (FLOAT_LAYOUT, INDEX_LAYOUT)}
    leaf = layouts[int(_header(buffer)["grid_type"])].leaf
    crcs: list[int] = []
    for level, kind in (("upper", UPPER), ("lower", LOWER), ("leaf", leaf)):
        start = TREE_AT + int(tree[f"node_offset_{level}"])
        size = kind.itemsize
        nodes = range(start, start + int(tree[f"node_count_{level}"]) * size, size)
        crcs += [zlib.crc32(data[at : at + size]) for at in nodes]
    each: NDArray[np.uint32] = np.array(crcs, "<u4")
    return zlib.crc32(each.astype("<u8").tobytes()), zlib.crc32(each.tobytes())
