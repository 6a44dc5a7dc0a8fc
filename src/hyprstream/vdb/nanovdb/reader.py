"""Finds out whether bytes are a sound grid, and says what is wrong where they are not.

Nothing is believed: every count, offset and mask is compared with the length of the buffer and
with the others before it is used, and memory is at most a small multiple of that length. What
passes can be handed to native code that follows offsets without looking.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Never

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError, UnsupportedFormatError
from hyprstream.vdb.nanovdb import keys as keying
from hyprstream.vdb.nanovdb import structures as s
from hyprstream.vdb.nanovdb.checksum import is_intact
from hyprstream.vdb.nanovdb.view import GridView, Indices, Nodes
from hyprstream.vdb.nanovdb.writer import count_words

_LAYOUTS = {layout.grid_type: layout for layout in (s.INDEX_LAYOUT, s.FLOAT_LAYOUT)}
_DATA_TYPES: dict[int, type[np.generic]] = {
    s.TYPE_UNKNOWN: np.uint8,
    s.TYPE_FLOAT: np.float32,
    s.TYPE_HALF: np.float16,
}
_SMALLEST = s.ROOT_AT + s.ROOT_FLOAT.itemsize


def open_grid(buffer: s.Bytes, file: object = "the grid") -> GridView:
    """View the grid that a buffer holds; copy it first if it is not aligned or not writable.

    Args:
        buffer: One grid, no more, (B,) uint8.
        file: What errors call it.

    Raises:
        CorruptGridError: It contradicts itself, or its checksum.
        UnsupportedFormatError: Its type, version, or a feature it uses is not read here.
    """
    return _Reader(buffer, file).open()


class _Level(NamedTuple):
    """The nodes of one level, and where the first is."""

    nodes: Nodes
    at: int

    @property
    def end(self) -> int:
        return self.at + self.nodes.nbytes


class _Reader:
    """Reads one grid from the headers down."""

    def __init__(self, buffer: s.Bytes, file: object) -> None:
        self._buffer = buffer
        self._file = file

    def open(self) -> GridView:
        layout = self._read_header()
        buffer = self._buffer
        if buffer.ctypes.data % s.ALIGNMENT or not buffer.flags.writeable:
            self._buffer = s.aligned_zeros(len(buffer))
            self._buffer[:] = buffer
        tree = self._buffer[s.TREE_AT : s.ROOT_AT].view(s.TREE)[0]
        root_at = s.TREE_AT + int(tree["node_offset_root"])
        self._check(root_at == s.ROOT_AT, f"the root lies at {root_at}")
        end, tiles = self._read_root(layout)
        upper = self._level(tree, "upper", s.UPPER, end)
        lower = self._level(tree, "lower", s.LOWER, upper.end)
        leaf = self._level(tree, "leaf", layout.leaf, lower.end)
        self._check(is_intact(self._buffer), "its checksum is that of other bytes")
        tile_keys, tile_uppers, paths = self._tiles(tiles, upper)
        paths = self._children("lower", upper, lower, paths)
        paths = self._children("leaf", lower, leaf, paths)
        self._check_origins(leaf.nodes, tile_keys, paths)
        prefix_sums, counts = count_words(leaf.nodes["value_mask"])
        self._check(int(tree["voxel_count"]) == counts.sum(), "its number of voxels is another")
        channels: Mapping[str, NDArray[Any]] = {}
        if layout is s.INDEX_LAYOUT:
            self._check_indices(leaf.nodes, prefix_sums, counts)
            channels = self._channels(leaf.end)
        return GridView(
            buffer=self._buffer,
            layout=layout,
            tiles=tile_keys,
            tile_uppers=tile_uppers,
            uppers=upper.nodes,
            lowers=lower.nodes,
            leaves=leaf.nodes,
            leaf_paths=paths,
            channels=MappingProxyType(channels),
        )

    def _fail(self, problem: str) -> Never:
        raise CorruptGridError(problem, self._file)

    def _check(self, sound: object, problem: str) -> None:
        if not sound:
            self._fail(problem)

    def _refuse(self, what: str, hint: str) -> Never:
        raise UnsupportedFormatError(f"{self._file} {what}", hint=hint)

    def _read_header(self) -> s.Layout:
        size = len(self._buffer)
        self._check(size >= _SMALLEST, f"{size} bytes are too few for a grid")
        header = self._buffer[: s.TREE_AT].view(s.GRID)[0]
        magic, packed = int(header["magic"]), int(header["version"])
        self._check(magic in {s.MAGIC_OLD, s.MAGIC_GRID}, "it does not begin as a grid does")
        if packed >> 21 != s.MAJOR_VERSION or packed < s.OLDEST_VERSION:
            numbers = f"{packed >> 21}.{packed >> 10 & 2047}.{packed & 1023}"
            self._refuse(f"is NanoVDB of version {numbers}", "Versions 32.3 to 32.x are read.")
        self._check(int(header["grid_size"]) == size, f"{size} bytes are not the length it states")
        grid_type = int(header["grid_type"])
        if grid_type not in _LAYOUTS:
            self._refuse(f"holds a grid of type {grid_type}", "Float and ValueOnIndex are read.")
        layout = _LAYOUTS[grid_type]
        self._check(size >= s.ROOT_AT + layout.root.itemsize, "it has no room for a root")
        return layout

    def _read_root(self, layout: s.Layout) -> tuple[int, Nodes]:
        """Return where the root's table ends, and the table."""
        at = s.ROOT_AT + layout.root.itemsize
        root = self._buffer[s.ROOT_AT : at].view(layout.root)[0]
        end = at + int(root["table_size"]) * s.ROOT_TILE.itemsize
        self._check(end <= len(self._buffer), "its root table is longer than the grid")
        return end, self._buffer[at:end].view(s.ROOT_TILE)

    def _level(self, tree: np.void, name: str, kind: np.dtype[Any], after: int) -> _Level:
        count = int(tree[f"node_count_{name}"])
        if not count:
            return _Level(self._buffer[:0].view(kind), after)
        at = s.TREE_AT + int(tree[f"node_offset_{name}"])
        sound = at >= after and at % s.ALIGNMENT == 0
        end = at + count * kind.itemsize
        self._check(
            sound and end <= len(self._buffer), f"its {name} nodes do not fit where they lie"
        )
        return _Level(self._buffer[at:end].view(kind), at)

    def _tiles(self, table: Nodes, upper: _Level) -> tuple[s.Keys, Indices, s.Keys]:
        """Return the tiles with children, the node below each, and the tile above each node."""
        inactive = table["child"] == 0
        if (inactive & (table["state"] != 0)).any():
            self._refuse_tiles()
        table = table[~inactive]
        order = np.argsort(table["key"])
        tile_keys = table["key"][order]
        self._check(
            keying.are_tile_keys(tile_keys) and (tile_keys[1:] != tile_keys[:-1]).all(),
            "its root table is no table of tiles",
        )
        start = np.full(len(order), s.ROOT_AT)
        uppers = self._numbers("upper", table["child"][order], start, upper)
        ranks = np.zeros(len(uppers), np.uint64)
        ranks[uppers] = np.arange(len(uppers), dtype=np.uint64)
        return tile_keys, uppers, ranks

    def _numbers(
        self, name: str, offsets: NDArray[np.int64], starts: Indices, level: _Level
    ) -> Indices:
        """Turn offsets into numbers of nodes, each of which has to be led to once."""
        problem = f"its {name} nodes are not those that the tree leads to"
        self._check(len(offsets) == len(level.nodes), problem)
        self._check(((offsets > 0) & (offsets < len(self._buffer))).all(), problem)
        number, rest = np.divmod(offsets + starts - level.at, level.nodes.itemsize)
        sound = (rest == 0) & (number >= 0) & (number < len(level.nodes))
        self._check(sound.all(), problem)
        reached = np.zeros(len(level.nodes), np.bool_)
        reached[number] = True
        self._check(reached.all(), problem)
        return number

    def _children(self, name: str, parents: _Level, children: _Level, paths: s.Keys) -> s.Keys:
        """Return the path of each child from those of its parents."""
        nodes = parents.nodes
        if (nodes["value_mask"] & ~nodes["child_mask"]).any():
            self._refuse_tiles()
        num_children = nodes.dtype["table"].shape[0]
        masks = np.ascontiguousarray(nodes["child_mask"]).view(np.uint8)
        place = np.flatnonzero(np.unpackbits(masks, bitorder="little").view(np.bool_))
        parent, place = np.divmod(place, num_children)
        starts = parents.at + parent * nodes.itemsize
        number = self._numbers(name, nodes["table"][parent, place], starts, children)
        found = np.zeros(len(number), np.uint64)
        found[number] = paths[parent] * np.uint64(num_children) + place.astype(np.uint64)
        return found

    def _refuse_tiles(self) -> Never:
        self._refuse(
            "has active tiles", "Write every active voxel into a leaf (voxelizeActiveTiles)."
        )

    def _check_origins(self, leaves: Nodes, tiles: s.Keys, paths: s.Keys) -> None:
        origins = keying.node_origins(tiles, paths, keying.LEAF_BITS)
        stated = leaves["bbox_min"] & np.int32(-8)
        self._check((stated == origins).all(), "a leaf says that it lies elsewhere")

    def _check_indices(
        self, leaves: Nodes, prefix_sums: NDArray[np.uint64], counts: NDArray[np.uint64]
    ) -> None:
        header = self._buffer[: s.TREE_AT].view(s.GRID)[0]
        num_values = int(counts.sum()) + 1
        self._check(int(header["data1"]) == num_values, "its number of values is another")
        first = np.cumsum(counts) - counts + np.uint64(1)
        self._check((leaves["offset"] == first).all(), "a leaf begins at another index")
        self._check(
            (leaves["prefix_sum"] == prefix_sums).all(),
            "a leaf's prefix sums are not those of its mask",
        )

    def _channels(self, after: int) -> dict[str, NDArray[Any]]:
        header = self._buffer[: s.TREE_AT].view(s.GRID)[0]
        count, at = int(header["blind_metadata_count"]), int(header["blind_metadata_offset"])
        if not count:
            return {}
        free = at + count * s.BLIND_METADATA.itemsize
        self._check(
            after <= at and at % s.ALIGNMENT == 0 and free <= len(self._buffer),
            "its list of channels does not fit where it lies",
        )
        found: dict[str, NDArray[Any]] = {}
        for number, entry in enumerate(self._buffer[at:free].view(s.BLIND_METADATA)):
            name = bytes(entry["name"]).decode("utf-8", "replace")
            self._check(name not in found and "\0" not in name, "two channels have one name")
            start = at + number * s.BLIND_METADATA.itemsize + int(entry["data_offset"])
            self._check(free <= start, f"the channel {name!r} lies in another")
            found[name] = self._channel(name, entry, start)
            free = start + found[name].nbytes
        return found

    def _channel(self, name: str, entry: np.void, start: int) -> NDArray[Any]:
        number = int(entry["data_type"])
        if number not in _DATA_TYPES:
            self._refuse(
                f"has a channel of type {number}",
                "Channels of float32, float16 and bytes are read.",
            )
        kind = np.dtype(_DATA_TYPES[number])
        self._check(
            int(entry["value_size"]) == kind.itemsize, f"the values of {name!r} have an odd size"
        )
        end = start + int(entry["value_count"]) * kind.itemsize
        self._check(
            start % s.ALIGNMENT == 0 and end <= len(self._buffer),
            f"the channel {name!r} does not fit where it lies",
        )
        return self._buffer[start:end].view(kind)
