"""Coordinates as keys: the numbers that a grid's nodes give their children, in one integer.

A root tile spans 4096 voxels in each direction, so 36 bits name a voxel in it: 15 bits say which
of the 32^3 lower nodes, 12 which of its 16^3 leaves, 9 which of its 8^3 voxels. Ascending keys are
the order in which NanoVDB numbers voxels.
"""

import numpy as np
from numpy.typing import NDArray

from hyprstream.vdb.nanovdb.structures import Coordinates, Keys

KEY_BITS = 36
LEAF_BITS, LOWER_BITS, UPPER_BITS = 9, 12, 15
LEAF_PATH_BITS = LOWER_BITS + UPPER_BITS
TILE_BITS = 12
_TILE_FIELD = 20  # bits of a tile's coordinate in an int32
_TILE_SHIFTS = (42, 21, 0)

# Along one axis, below the root: first bit of the node's share of a coordinate, its bits, and
# where they go in a key for x, y and z.
_FIELDS = ((0, 3, (6, 3, 0)), (3, 4, (17, 13, 9)), (7, 5, (31, 26, 21)))


def _table(axis: int) -> Keys:
    """Return the key bits of each of the 4096 coordinates along one axis."""
    coordinate = np.arange(1 << TILE_BITS, dtype=np.uint64)
    key = np.zeros(1 << TILE_BITS, np.uint64)
    for first, bits, places in _FIELDS:
        part = coordinate >> np.uint64(first) & np.uint64((1 << bits) - 1)
        key |= part << np.uint64(places[axis])
    return key


_TABLES = tuple(_table(axis) for axis in range(3))
_WITHIN = np.int32((1 << TILE_BITS) - 1)


def keys_within_tile(coordinates: Coordinates) -> Keys:
    """Return the 36-bit key of each voxel in its own root tile, (N,) of (N, 3)."""
    x, y, z = (coordinates[:, axis] & _WITHIN for axis in range(3))
    key: Keys = _TABLES[0][x]
    key |= _TABLES[1][y]
    key |= _TABLES[2][z]
    return key


def coordinates_within_tile(keys: Keys) -> Coordinates:
    """Return where in its tile a key's voxel is, (N, 3) of (N,); the inverse of the above."""
    found = np.empty((3, len(keys)), np.int32)
    for axis in range(3):
        coordinate = np.zeros(len(keys), np.uint64)
        for first, bits, places in _FIELDS:
            part = keys >> np.uint64(places[axis]) & np.uint64((1 << bits) - 1)
            coordinate |= part << np.uint64(first)
        found[axis] = coordinate
    return np.ascontiguousarray(found.T)


def tile_keys(coordinates: Coordinates) -> Keys:
    """Return the key of the root tile of each voxel, as NanoVDB's root table holds it."""
    tile = coordinates.view(np.uint32) >> np.uint32(TILE_BITS)
    key = np.zeros(len(coordinates), np.uint64)
    for axis, shift in enumerate(_TILE_SHIFTS):
        key |= tile[:, axis].astype(np.uint64) << np.uint64(shift)
    return key


def tile_origins(keys: Keys) -> Coordinates:
    """Return the least corner of each root tile, (N, 3)."""
    field = np.uint64((1 << _TILE_FIELD) - 1)
    parts = [(keys >> np.uint64(shift) & field).astype(np.uint32) for shift in _TILE_SHIFTS]
    return (np.stack(parts, axis=1) << np.uint32(TILE_BITS)).view(np.int32)


def sort_rank(keys: Keys) -> Keys:
    """Return tile keys that sort by signed coordinate, as OpenVDB orders tiles; its own inverse."""
    sign = sum(1 << (shift + _TILE_FIELD - 1) for shift in _TILE_SHIFTS)
    return keys ^ np.uint64(sign)


def are_tile_keys(keys: Keys) -> bool:
    """Tell whether no bit is set that no coordinate sets."""
    allowed = sum(((1 << _TILE_FIELD) - 1) << shift for shift in _TILE_SHIFTS)
    return not (keys & ~np.uint64(allowed)).any()


def node_origins(tiles: Keys, nodes: Keys, bits_below: int) -> Coordinates:
    """Return the least corner of nodes.

    Args:
        tiles: Keys of the root tiles, (T,).
        nodes: Paths of the nodes, (N,): number of the tile, then the key's bits down to the node.
        bits_below: Bits of a key that tell voxels of one node apart.
    """
    paths = nodes << np.uint64(bits_below)
    origins = tile_origins(tiles)
    if len(tiles) > 1:
        origins = origins[(paths >> np.uint64(KEY_BITS)).astype(np.intp)]
    return origins + coordinates_within_tile(paths)


def sorted_unique(keys: Keys) -> tuple[Keys, NDArray[np.intp] | None]:
    """Sort keys and keep the last of equal ones.

    Returns:
        The keys, and for each which it was before; None if they were in order already.
    """
    if len(keys) < 2 or bool((keys[1:] > keys[:-1]).all()):
        return keys, None
    bits = (len(keys) - 1).bit_length()
    if int(keys.max()).bit_length() + bits <= 64:
        # One sort of plain integers is several times as fast as argsort, and stable.
        packed = keys << np.uint64(bits)
        packed |= np.arange(len(keys), dtype=np.uint64)
        packed.sort()
        order = (packed & np.uint64((1 << bits) - 1)).astype(np.intp)
        packed >>= np.uint64(bits)
        keys = packed
    else:
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
    last = np.append(keys[1:] != keys[:-1], True)
    return (keys, order) if last.all() else (keys[last], order[last])
