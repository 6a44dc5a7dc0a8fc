"""A grid in memory that was found sound: arrays over its bytes, and the way to a voxel.

Made by `reader.open_grid`, which checks all that is taken for granted here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hyprstream.vdb.nanovdb import keys as keying
from hyprstream.vdb.nanovdb import structures as s

Nodes = NDArray[Any]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GridView:
    """One grid; its arrays are views, so what is written to them is written to the grid.

    Attributes:
        buffer: All of the grid, 32-byte aligned.
        layout: Its type.
        tiles: Keys of the root tiles that have children, ascending.
        tile_uppers: Number of the upper node below each of them.
        uppers: The upper nodes, as structures; likewise `lowers` and `leaves`.
        leaf_paths: For each leaf the number of its tile among `tiles`, then the key's bits.
        channels: What lies behind the tree of an index grid, by name.
    """

    buffer: s.Bytes
    layout: s.Layout
    tiles: s.Keys
    tile_uppers: Indices
    uppers: Nodes
    lowers: Nodes
    leaves: Nodes
    leaf_paths: s.Keys
    channels: Mapping[str, NDArray[Any]]

    @property
    def header(self) -> np.void:
        """The structure at the beginning."""
        header: np.void = self.buffer[: s.TREE_AT].view(s.GRID)[0]
        return header

    @property
    def name(self) -> str:
        """Name of the grid."""
        return bytes(self.header["grid_name"]).partition(b"\0")[0].decode(errors="replace")

    @property
    def kind(self) -> Literal["float", "index"]:
        """Where values are: in the leaves, or in channels that the grid gives indices of."""
        return "float" if self.layout.grid_type == s.TYPE_FLOAT else "index"

    @property
    def background(self) -> float:
        """What inactive voxels of a float grid are; 0 of an index grid."""
        if self.kind == "index":
            return 0.0
        root = self.buffer[s.ROOT_AT :][: s.ROOT_FLOAT.itemsize].view(s.ROOT_FLOAT)[0]
        return float(root["background"])

    @property
    def num_voxels(self) -> int:
        """Number of active voxels."""
        return int(self.buffer[s.TREE_AT : s.ROOT_AT].view(s.TREE)[0]["voxel_count"])

    def active(self) -> tuple[Indices, Indices]:
        """Return leaf number and place in the leaf of each active voxel, in index order."""
        masks = np.ascontiguousarray(self.leaves["value_mask"]).view(np.uint8)
        bits = np.unpackbits(masks, bitorder="little").view(np.bool_)
        place = np.flatnonzero(bits)
        return place >> keying.LEAF_BITS, place & ((1 << keying.LEAF_BITS) - 1)

    def keys(self) -> s.Keys:
        """Return the path of each active voxel: number of its tile, then its 36-bit key."""
        leaf, place = self.active()
        paths = self.leaf_paths << np.uint64(keying.LEAF_BITS)
        return paths[leaf] | place.astype(np.uint64)

    def coordinates(self) -> s.Coordinates:
        """Return where each active voxel is, (N, 3), in index order."""
        leaf, place = self.active()
        origins = keying.node_origins(self.tiles, self.leaf_paths, keying.LEAF_BITS)
        within = keying.coordinates_within_tile(np.arange(1 << keying.LEAF_BITS, dtype=np.uint64))
        return origins[leaf] + within[place]

    def leaf_values(self) -> NDArray[np.float32]:
        """Return the values of the active voxels of a float grid, in index order."""
        values: NDArray[np.float32] = self.leaves["table"][self.active()]
        return values

    def find(self, coordinates: s.Coordinates) -> tuple[Indices, Indices, NDArray[np.bool_]]:
        """Walk down the tree to each voxel.

        Returns:
            Number of its leaf, its place there, and whether it is active. The first two mean
            nothing for a voxel in no leaf, which is not active.
        """
        keys = keying.keys_within_tile(coordinates)
        if not len(self.leaves):
            nothing = np.zeros(len(keys), np.intp)
            return nothing, nothing, np.zeros(len(keys), np.bool_)
        wanted = keying.tile_keys(coordinates)
        tile = np.minimum(np.searchsorted(self.tiles, wanted), len(self.tiles) - 1)
        there = self.tiles[tile] == wanted
        at = self.layout
        uppers, lowers, leaves = (
            _address(nodes) for nodes in (self.uppers, self.lowers, self.leaves)
        )
        upper = self.tile_uppers[tile]
        bits = keying.LOWER_BITS + keying.LEAF_BITS
        lower, there = _child(self.uppers, upper, there, keys >> np.uint64(bits),
                              lowers - uppers, s.LOWER.itemsize)  # fmt: skip
        leaf, there = _child(self.lowers, lower, there, keys >> np.uint64(keying.LEAF_BITS),
                             leaves - lowers, at.leaf.itemsize)  # fmt: skip
        place = (keys & np.uint64(511)).astype(np.intp)
        return leaf, place, there & _bit(self.leaves["value_mask"], leaf, place)

    def index(self, coordinates: s.Coordinates) -> NDArray[np.int64]:
        """Return the index that an index grid gives each voxel; 0 if it is not active."""
        leaf, place, active = self.find(coordinates)
        leaf, place = leaf[active], place[active]
        word = place >> 6
        bits = self.leaves["value_mask"][leaf, word]
        below = bits & ((np.uint64(1) << (place & 63).astype(np.uint64)) - np.uint64(1))
        shift = (9 * np.maximum(word - 1, 0)).astype(np.uint64)
        before = self.leaves["prefix_sum"][leaf] >> shift & np.uint64(511)
        index = self.leaves["offset"][leaf] + np.where(word > 0, before, np.uint64(0))
        found = np.zeros(len(active), np.int64)
        found[active] = index + np.bitwise_count(below)
        return found


def _address(nodes: Nodes) -> int:
    return nodes.ctypes.data


def _bit(masks: NDArray[np.uint64], node: Indices, place: Indices) -> NDArray[np.bool_]:
    words: NDArray[np.uint64] = masks[node, place >> 6]
    return (words >> (place & 63).astype(np.uint64) & np.uint64(1)).astype(np.bool_)


def _child(
    parents: Nodes,
    parent: Indices,
    there: NDArray[np.bool_],
    keys: s.Keys,
    distance: int,
    size: int,
) -> tuple[Indices, NDArray[np.bool_]]:
    """Follow a table's entries to the numbers of children; 0 where there is none."""
    num_children = parents.dtype["table"].shape[0]
    place = (keys & np.uint64(num_children - 1)).astype(np.intp)
    there = there & _bit(parents["child_mask"], parent, place)
    offset = parents["table"][parent, place] + parent * parents.itemsize - distance
    return np.where(there, offset // size, 0), there
