"""Builds grids from active voxels: the bytes that the official builders make.

Checksums are left out; `files` puts them in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyprstream.vdb.nanovdb import structures as s
from hyprstream.vdb.nanovdb.channels import (
    Channel,
    encoded_name,
    size_of_channels,
    write_channels,
)
from hyprstream.vdb.nanovdb.keys import LEAF_PATH_BITS
from hyprstream.vdb.nanovdb.topology import Boxes, Topology, leaf_boxes, mask_words, owners
from hyprstream.vdb.nanovdb.view import GridView

_IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
_TRANSFORM = (*_IDENTITY, *_IDENTITY, 0, 0, 0, 1)
_NO_BOX = (2**31 - 1, -(2**31))


@dataclass(frozen=True, slots=True)
class Places:
    """Where in the buffer each part begins, in bytes."""

    upper: int
    lower: int
    leaf: int
    blind: int
    end: int


def index_grid(topology: Topology, channels: Sequence[Channel], *, name: str = "") -> GridView:
    """Build a `ValueOnIndex` grid: voxel number i of the topology has index i + 1.

    Raises:
        InvalidAdapterError: A name is too long.
    """
    places = _place(topology, s.INDEX_LAYOUT, channels)
    buffer = s.aligned_zeros(places.end)
    header = _write_header(buffer, topology, s.INDEX_LAYOUT, places, name)
    header["magic"], header["version"] = s.MAGIC_GRID, s.INDEX_VERSION
    header["grid_class"] = s.CLASS_INDEX_GRID
    header["data1"] = topology.num_voxels + 1
    if channels:
        header["blind_metadata_offset"], header["blind_metadata_count"] = (
            places.blind,
            len(channels),
        )
    if topology.num_voxels:
        leaves = _write_tree(buffer, topology, s.INDEX_LAYOUT, places)
        leaves["offset"] = topology.leaf_starts
        leaves["offset"] += np.uint64(1)
        leaves["prefix_sum"], _ = count_words(topology.masks)
    return _view(buffer, topology, places, write_channels(buffer, places.blind, channels))


def float_grid(
    topology: Topology,
    values: NDArray[np.float32],
    *,
    background: float = 0.0,
    name: str = "",
) -> s.Bytes:
    """Build a `Float` grid that readers from version 32.4 on take.

    Args:
        topology: The active voxels.
        values: One for each of them, in the order of the topology.
        background: What all other voxels are.
        name: At most 255 bytes.

    Raises:
        InvalidAdapterError: The name is too long.
    """
    places = _place(topology, s.FLOAT_LAYOUT, ())
    buffer = s.aligned_zeros(places.end)
    header = _write_header(buffer, topology, s.FLOAT_LAYOUT, places, name)
    header["magic"], header["version"] = s.MAGIC_OLD, s.FLOAT_VERSION
    root = buffer[s.ROOT_AT :][: s.ROOT_FLOAT.itemsize].view(s.ROOT_FLOAT)
    root["background"] = background
    if topology.num_voxels:
        header["flags"] |= s.FLAG_MIN_MAX | s.FLAG_AVERAGE | s.FLAG_DEVIATION
        leaves = _write_tree(buffer, topology, s.FLOAT_LAYOUT, places)
        if background:
            leaves["table"] = background
        slots = (topology.voxels & np.uint64(511)).astype(np.intp)
        leaves["table"][topology.leaf_of_voxel, slots] = values
        _write_statistics(buffer, topology, places, values)
    return buffer


def _place(topology: Topology, layout: s.Layout, channels: Sequence[Channel]) -> Places:
    upper = s.ROOT_AT + layout.root.itemsize + len(topology.tiles) * s.ROOT_TILE.itemsize
    lower = upper + len(topology.uppers) * s.UPPER.itemsize
    leaf = lower + len(topology.lowers) * s.LOWER.itemsize
    blind = leaf + len(topology.leaves) * layout.leaf.itemsize
    return Places(upper, lower, leaf, blind, blind + size_of_channels(channels))


def _write_header(
    buffer: s.Bytes, topology: Topology, layout: s.Layout, places: Places, name: str
) -> np.void:
    header: np.void = buffer[: s.TREE_AT].view(s.GRID)[0]
    header["checksum"] = s.NO_CHECKSUM
    header["flags"] = s.FLAG_BREADTH_FIRST
    header["grid_count"] = 1
    header["grid_size"] = places.end
    header["grid_name"] = encoded_name(name)
    header["map_float"] = header["map_double"] = _TRANSFORM
    header["voxel_size"] = 1.0
    header["grid_type"] = layout.grid_type
    header["blind_metadata_offset"] = places.end
    tree = buffer[s.TREE_AT : s.ROOT_AT].view(s.TREE)[0]
    tree["node_offset_root"] = s.ROOT_AT - s.TREE_AT
    for level, nodes in (
        ("upper", topology.uppers),
        ("lower", topology.lowers),
        ("leaf", topology.leaves),
    ):
        tree[f"node_offset_{level}"] = getattr(places, level) - s.TREE_AT
        tree[f"node_count_{level}"] = len(nodes)
    tree["voxel_count"] = topology.num_voxels
    root = buffer[s.ROOT_AT :][: layout.root.itemsize].view(layout.root)
    root["bbox_min"], root["bbox_max"] = _NO_BOX
    return header


def _write_tree(
    buffer: s.Bytes, topology: Topology, layout: s.Layout, places: Places
) -> NDArray[Any]:
    """Write all nodes; return the leaves, whose masks and bounds are set."""
    leaf_box = leaf_boxes(topology)
    lower_box = leaf_box.merged(topology.lower_starts)
    upper_box = lower_box.merged(topology.upper_starts)

    leaves = buffer[places.leaf : places.blind].view(layout.leaf)
    leaves["bbox_min"] = leaf_box.least
    leaves["bbox_dif"] = leaf_box.most - leaf_box.least
    leaves["flags"] = s.NODE_HAS_BBOX
    leaves["value_mask"] = topology.masks

    lowers = buffer[places.lower : places.leaf].view(s.LOWER)
    uppers = buffer[places.upper : places.lower].view(s.UPPER)
    background = _background_bits(buffer, layout)
    if background:  # what is not touched takes no memory yet
        lowers["table"] = uppers["table"] = background
    _write_inner(lowers, lower_box)
    _link(lowers, topology.lower_starts, topology.leaves, layout.leaf.itemsize,
          places.leaf - places.lower)  # fmt: skip
    _write_inner(uppers, upper_box)
    _link(uppers, topology.upper_starts, topology.lowers, s.LOWER.itemsize,
          places.lower - places.upper)  # fmt: skip
    _write_root(buffer, topology, layout, places, upper_box)
    return leaves


def _background_bits(buffer: s.Bytes, layout: s.Layout) -> int:
    """What the entries of a table hold that lead to no child: a float in the low half."""
    if layout.grid_type != s.TYPE_FLOAT:
        return 0
    at = s.ROOT_AT + int(s.ROOT_FLOAT.fields["background"][1])  # type: ignore[index]  # it has
    return int(buffer[at : at + 4].view("<u4")[0])


def _write_inner(nodes: NDArray[Any], box: Boxes) -> None:
    nodes["bbox_min"], nodes["bbox_max"] = box.least, box.most
    nodes["flags"] = s.NODE_HAS_BBOX


def _link(
    parents: NDArray[Any], starts: NDArray[np.intp], children: s.Keys, size: int, distance: int
) -> None:
    """Set the masks and offsets that lead to children of `size` bytes, `distance` behind."""
    num_children = parents.dtype["table"].shape[0]
    parent = owners(starts, len(children))
    place = (children & np.uint64(num_children - 1)).astype(np.intp)
    words, firsts, bits = mask_words(children)
    within = (words & np.uint64(num_children // 64 - 1)).astype(np.intp)
    parents["child_mask"][parent[firsts], within] = bits
    parents["table"][parent, place] = (
        distance + np.arange(len(children)) * size - parent * parents.itemsize
    )


def _write_root(
    buffer: s.Bytes, topology: Topology, layout: s.Layout, places: Places, box: Boxes
) -> None:
    root = buffer[s.ROOT_AT :][: layout.root.itemsize].view(layout.root)[0]
    root["bbox_min"], root["bbox_max"] = box.least.min(axis=0), box.most.max(axis=0)
    root["table_size"] = len(topology.tiles)
    tiles = buffer[s.ROOT_AT + layout.root.itemsize : places.upper].view(s.ROOT_TILE)
    tiles["key"] = topology.tiles
    tiles["child"] = places.upper - s.ROOT_AT + np.arange(len(topology.tiles)) * s.UPPER.itemsize
    header = buffer[: s.TREE_AT].view(s.GRID)[0]
    header["flags"] |= s.FLAG_BBOX
    header["world_bbox"][:3] = root["bbox_min"]
    header["world_bbox"][3:] = root["bbox_max"].astype(np.float64) + 1


def count_words(masks: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Count the active voxels of leaves.

    Args:
        masks: Their masks, (L, 8).

    Returns:
        Packed prefix sums: how many are active before each of the words 1 to 7, 9 bits each, (L,);
        and how many there are in all, (L,).
    """
    packed = np.zeros(len(masks), np.uint64)
    total = np.zeros(len(masks), np.uint64)
    for word in range(7):
        total += np.bitwise_count(masks[:, word])
        packed |= total << np.uint64(9 * word)
    return packed, total + np.bitwise_count(masks[:, 7])


def _write_statistics(
    buffer: s.Bytes, topology: Topology, places: Places, values: NDArray[np.float32]
) -> None:
    """Set least, most, mean and deviation of the active values of every node."""
    wide = values.astype(np.float64)
    ones = np.ones(len(values))
    parts: list[NDArray[Any]] = [values, values, wide, wide * wide, ones]
    merge = (np.minimum, np.maximum, np.add, np.add, np.add)
    nodes = [
        (topology.leaf_starts, buffer[places.leaf : places.blind].view(s.LEAF_FLOAT)),
        (topology.lower_starts, buffer[places.lower : places.leaf].view(s.LOWER)),
        (topology.upper_starts, buffer[places.upper : places.lower].view(s.UPPER)),
        (np.zeros(1, np.intp), buffer[s.ROOT_AT :][: s.ROOT_FLOAT.itemsize].view(s.ROOT_FLOAT)),
    ]
    for starts, level in nodes:
        parts = [
            function.reduceat(part, starts) for function, part in zip(merge, parts, strict=True)
        ]
        least, most, total, squares, count = parts
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
        level["statistics"] = np.stack([least, most, mean, deviation], axis=1)


def _view(
    buffer: s.Bytes, topology: Topology, places: Places, channels: dict[str, NDArray[Any]]
) -> GridView:
    """View an index grid that was just built, which needs no look at whether it is sound."""
    order = np.argsort(topology.tiles)
    tile = (topology.leaves >> np.uint64(LEAF_PATH_BITS)).astype(np.intp)
    rank = np.argsort(order).astype(np.uint64)[tile] << np.uint64(LEAF_PATH_BITS)
    return GridView(
        buffer=buffer,
        layout=s.INDEX_LAYOUT,
        tiles=topology.tiles[order],
        tile_uppers=order,
        uppers=buffer[places.upper : places.lower].view(s.UPPER),
        lowers=buffer[places.lower : places.leaf].view(s.LOWER),
        leaves=buffer[places.leaf : places.blind].view(s.LEAF_INDEX),
        leaf_paths=rank | topology.leaves & np.uint64((1 << LEAF_PATH_BITS) - 1),
        channels=MappingProxyType(channels),
    )
