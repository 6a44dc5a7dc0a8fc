"""Which voxels are active, grouped into the nodes of a tree."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.nanovdb import keys as keying
from hyprstream.vdb.nanovdb.structures import Coordinates, Keys

Starts = NDArray[np.intp]

_BYTE = np.arange(256)
_LOWEST_BIT = np.array([(b & -b).bit_length() - 1 for b in _BYTE.tolist()], np.int32)
_HIGHEST_BIT = np.array([b.bit_length() - 1 for b in _BYTE.tolist()], np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """Active voxels and the nodes that hold them, each level in ascending order.

    Attributes:
        tiles: Keys of the root tiles, one for each upper node.
        voxels: Path of each voxel: number of its tile, then its key in the tile.
        order: Which of the voxels given each one is; None for the same order.
        masks: Active voxels of each leaf, (L, 8) words.
        leaves: Path of each leaf; likewise `lowers` and `uppers`.
        leaf_starts: First voxel of each leaf.
        lower_starts: First leaf of each lower node.
        upper_starts: First lower node of each upper node.
    """

    tiles: Keys
    voxels: Keys
    order: Starts | None
    masks: NDArray[np.uint64]
    leaves: Keys
    lowers: Keys
    uppers: Keys
    leaf_starts: Starts
    lower_starts: Starts
    upper_starts: Starts

    @property
    def num_voxels(self) -> int:
        """Number of active voxels."""
        return len(self.voxels)

    @property
    def leaf_of_voxel(self) -> Starts:
        """Number of the leaf of each voxel."""
        return owners(self.leaf_starts, self.num_voxels)


def of_coordinates(coordinates: Coordinates) -> Topology:
    """Group voxels anywhere in the range of int32; of equal ones the last counts."""
    if coordinates.ndim != 2 or coordinates.shape[1] != 3 or coordinates.dtype != np.int32:
        raise InvalidAdapterError(
            f"coordinates are {coordinates.dtype} {coordinates.shape}, they have to be int32 (N, 3)"
        )
    coordinates = np.asfortranarray(coordinates)  # each axis is read by itself
    keys = keying.keys_within_tile(coordinates)
    least = [int(c.min()) >> keying.TILE_BITS for c in coordinates.T] if len(keys) else []
    most = [int(c.max()) >> keying.TILE_BITS for c in coordinates.T] if len(keys) else []
    if least == most:
        tiles = keying.tile_keys(coordinates[:1])
    else:
        ranked, rank = np.unique(
            keying.sort_rank(keying.tile_keys(coordinates)), return_inverse=True
        )
        tiles = keying.sort_rank(ranked)
        keys |= rank.astype(np.uint64) << np.uint64(keying.KEY_BITS)
    return _grouped(tiles, *keying.sorted_unique(keys))


def of_keys(keys: Keys) -> Topology:
    """Group voxels of the root tile at the origin, given by their keys; of equals the last counts.

    Raises:
        InvalidAdapterError: A key has more than 36 bits.
    """
    if len(keys) and int(keys.max()) >> keying.KEY_BITS:
        raise InvalidAdapterError(
            f"the voxel key {int(keys.max())} does not fit in {keying.KEY_BITS} bits",
            hint="Store the adapter in parts.",
        )
    return _grouped(np.zeros(min(len(keys), 1), np.uint64), *keying.sorted_unique(keys))


def _grouped(tiles: Keys, voxels: Keys, order: Starts | None) -> Topology:
    words, word_starts, bits = mask_words(voxels)
    leaves, first_words = _groups(words >> np.uint64(3))
    lowers, lower_starts = _groups(leaves >> np.uint64(keying.LOWER_BITS))
    uppers, upper_starts = _groups(lowers >> np.uint64(keying.UPPER_BITS))
    masks = np.zeros((len(leaves), 8), np.uint64)
    rows = owners(first_words, len(words))
    masks[rows, (words & np.uint64(7)).astype(np.intp)] = bits
    return Topology(
        tiles=tiles,
        voxels=voxels,
        order=order,
        masks=masks,
        leaves=leaves,
        lowers=lowers,
        uppers=uppers,
        leaf_starts=word_starts[first_words],
        lower_starts=lower_starts,
        upper_starts=upper_starts,
    )


def mask_words(paths: Keys) -> tuple[Keys, Starts, NDArray[np.uint64]]:
    """Make mask words of sorted paths: of voxels for leaves, of nodes for their parents.

    Returns:
        Path of each word that is not zero, the first of its members, and the word.
    """
    words, starts = _groups(paths >> np.uint64(6))
    bits = np.uint64(1) << (paths & np.uint64(63))
    return words, starts, np.bitwise_or.reduceat(bits, starts) if len(starts) else bits


def _groups(keys: Keys) -> tuple[Keys, Starts]:
    """Return each distinct one of sorted keys, and where it begins."""
    if len(keys) == 0:
        return keys, np.zeros(0, np.intp)
    starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    return keys[starts], starts


def owners(starts: Starts, total: int) -> Starts:
    """Return the number of the group of each member; `starts` are the groups' first members."""
    return np.repeat(np.arange(len(starts)), np.diff(starts, append=total))


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Bounds of the active voxels of each node, (N, 3) each, both ends included."""

    least: Coordinates
    most: Coordinates

    def merged(self, starts: Starts) -> "Boxes":
        """Return the bounds of the parents whose children begin at `starts`."""
        return Boxes(
            np.minimum.reduceat(self.least, starts), np.maximum.reduceat(self.most, starts)
        )


def leaf_boxes(topology: Topology) -> Boxes:
    """Return the bounds of what is active in each leaf; no leaf is empty."""
    masks = topology.masks  # a word is a plane of x, a byte of it a row of y, a bit of that is z
    planes = np.packbits((masks != 0).reshape(-1), bitorder="little")
    plane = masks[:, :4] | masks[:, 4:]
    plane = plane[:, :2] | plane[:, 2:]
    plane = plane[:, 0] | plane[:, 1]
    rows = np.packbits(plane.view(np.uint8) != 0, bitorder="little")
    for shift in (32, 16, 8):
        plane |= plane >> np.uint64(shift)
    row = plane.astype(np.uint8)
    sides = (planes, rows, row)
    least = np.stack([_LOWEST_BIT[bits] for bits in sides], axis=1)
    most = np.stack([_HIGHEST_BIT[bits] for bits in sides], axis=1)
    origins = keying.node_origins(topology.tiles, topology.leaves, keying.LEAF_BITS)
    return Boxes(origins + least, origins + most)
