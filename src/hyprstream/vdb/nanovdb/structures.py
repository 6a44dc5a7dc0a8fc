"""What lies where in a NanoVDB grid and its file: the C structures as NumPy dtypes.

All fields are little endian. `tests/vdb/test_structures.py` compares sizes and offsets with
PNanoVDB.h.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Keys = NDArray[np.uint64]
Coordinates = NDArray[np.int32]

MAGIC_OLD = int.from_bytes(b"NanoVDB0", "little")
MAGIC_GRID = int.from_bytes(b"NanoVDB1", "little")
MAGIC_FILE = int.from_bytes(b"NanoVDB2", "little")

ALIGNMENT = 32
"""Bytes; every structure in a grid begins at a multiple, and so must its buffer."""

MAX_NAME_BYTES = 255
NO_CHECKSUM = 0xFFFFFFFF


def version(major: int, minor: int, patch: int) -> int:
    """Pack a version as headers hold it."""
    return major << 21 | minor << 10 | patch


MAJOR_VERSION = 32
OLDEST_VERSION = version(32, 3, 0)
FLOAT_VERSION = version(32, 4, 2)
INDEX_VERSION = version(32, 7, 0)
LAST_OLD_CHECKSUM = version(32, 6, 0)
"""Up to here a checksum covers the header up to the first node, and each node; later, blocks."""

FLAG_BBOX, FLAG_MIN_MAX, FLAG_AVERAGE, FLAG_DEVIATION, FLAG_BREADTH_FIRST = 2, 4, 8, 16, 32
NODE_HAS_BBOX = 2
TYPE_UNKNOWN, TYPE_FLOAT, TYPE_HALF, TYPE_ON_INDEX = 0, 1, 9, 20
CLASS_UNKNOWN, CLASS_INDEX_GRID = 0, 8
CHANNEL_BLIND, CHANNEL_VALUES = 0, 4

GRID = np.dtype(
    [
        ("magic", "<u8"),
        ("checksum", "<u4", (2,)),
        ("version", "<u4"),
        ("flags", "<u4"),
        ("grid_index", "<u4"),
        ("grid_count", "<u4"),
        ("grid_size", "<u8"),
        ("grid_name", "S256"),
        ("map_float", "<f4", (22,)),  # matrix, inverse, translation, taper
        ("map_double", "<f8", (22,)),
        ("world_bbox", "<f8", (6,)),
        ("voxel_size", "<f8", (3,)),
        ("grid_class", "<u4"),
        ("grid_type", "<u4"),
        ("blind_metadata_offset", "<i8"),
        ("blind_metadata_count", "<u4"),
        ("data0", "<u4"),
        ("data1", "<u8"),  # of an index grid: number of values, the background's included
        ("data2", "<u8"),
    ]
)

TREE = np.dtype(
    [
        ("node_offset_leaf", "<i8"),  # offsets count from the tree
        ("node_offset_lower", "<i8"),
        ("node_offset_upper", "<i8"),
        ("node_offset_root", "<i8"),
        ("node_count_leaf", "<u4"),
        ("node_count_lower", "<u4"),
        ("node_count_upper", "<u4"),
        ("tile_count", "<u4", (3,)),
        ("voxel_count", "<u8"),
    ]
)

_BOX = [("bbox_min", "<i4", (3,)), ("bbox_max", "<i4", (3,))]
ROOT_FLOAT = np.dtype(
    [
        *_BOX,
        ("table_size", "<u4"),
        ("background", "<f4"),
        ("statistics", "<f4", (4,)),
        ("padding", "V16"),
    ]
)
ROOT_INDEX = np.dtype([*_BOX, ("table_size", "<u4"), ("padding", "V68")])

ROOT_TILE = np.dtype([("key", "<u8"), ("child", "<i8"), ("state", "<u4"), ("value", "V12")])


def _internal(num_children: int) -> np.dtype[Any]:
    words = num_children // 64
    return np.dtype(
        [
            *_BOX,
            ("flags", "<u8"),
            ("value_mask", "<u8", (words,)),
            ("child_mask", "<u8", (words,)),
            ("statistics", "<f4", (4,)),  # least, most, mean, deviation; of float grids
            ("padding", "V16"),
            ("table", "<i8", (num_children,)),  # offset of a child from this node, or a value
        ]
    )


UPPER = _internal(32**3)
LOWER = _internal(16**3)

_LEAF = [
    ("bbox_min", "<i4", (3,)),
    ("bbox_dif", "u1", (3,)),
    ("flags", "u1"),
    ("value_mask", "<u8", (8,)),
]
LEAF_FLOAT = np.dtype([*_LEAF, ("statistics", "<f4", (4,)), ("table", "<f4", (512,))])
LEAF_INDEX = np.dtype([*_LEAF, ("offset", "<u8"), ("prefix_sum", "<u8")])

BLIND_METADATA = np.dtype(
    [
        ("data_offset", "<i8"),  # counts from this structure
        ("value_count", "<u8"),
        ("value_size", "<u4"),
        ("semantic", "<u4"),
        ("data_class", "<u4"),
        ("data_type", "<u4"),
        ("name", "S256"),
    ]
)

FILE_HEADER = np.dtype(
    [("magic", "<u8"), ("version", "<u4"), ("grid_count", "<u2"), ("codec", "<u2")]
)
FILE_METADATA = np.dtype(
    [
        ("grid_size", "<u8"),
        ("file_size", "<u8"),
        ("name_key", "<u8"),
        ("voxel_count", "<u8"),
        ("grid_type", "<u4"),
        ("grid_class", "<u4"),
        ("world_bbox", "<f8", (6,)),
        ("index_bbox", "<i4", (6,)),
        ("voxel_size", "<f8", (3,)),
        ("name_size", "<u4"),
        ("node_count", "<u4", (4,)),  # leaf, lower, upper, root
        ("tile_count", "<u4", (3,)),
        ("codec", "<u2"),
        ("padding", "<u2"),
        ("version", "<u4"),
    ]
)

TREE_AT = GRID.itemsize
ROOT_AT = TREE_AT + TREE.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between the grid types.

    Attributes:
        grid_type: Number in the header.
        root: Structure of the root, before its tiles.
        leaf: Structure of a leaf.
    """

    grid_type: int
    root: np.dtype[Any]
    leaf: np.dtype[Any]


INDEX_LAYOUT = Layout(TYPE_ON_INDEX, ROOT_INDEX, LEAF_INDEX)
FLOAT_LAYOUT = Layout(TYPE_FLOAT, ROOT_FLOAT, LEAF_FLOAT)


def aligned_zeros(size_bytes: int) -> Bytes:
    """Return zeroed memory that begins where grids may; NumPy promises 16 bytes only."""
    memory = np.zeros(size_bytes + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % (2 * ALIGNMENT)
    return memory[start : start + size_bytes]


def padded(size_bytes: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT
