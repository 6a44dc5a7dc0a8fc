"""Damaged and hostile grids are found out, soon and in bounded memory, and never crash."""

import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.layout import pack_tensors
from hyprstream.vdb.nanovdb import structures as s
from hyprstream.vdb.nanovdb.files import read_bytes, write_bytes
from hyprstream.vdb.tensors import SparseTensor
from tests.vdb.judge import problem_of_file, problem_of_grid
from tests.vdb.lattice import scattered_grid


def _packed() -> SparseGrid:
    mask = np.random.default_rng(0).random((64, 40)) < 0.1
    dense = np.arange(64 * 40, dtype=np.float32).reshape(64, 40)
    return pack_tensors({"a": SparseTensor.from_dense(dense, "float32", mask)})


INDEX = scattered_grid(count=300, reach=40)
PACKED = _packed()
FLOAT = scattered_grid(count=100, reach=20).float_grid()


def starts(buffer: np.ndarray, root: np.dtype) -> dict[str, int]:
    """Where each part of a grid of ours begins."""
    tree = buffer[s.TREE_AT : s.ROOT_AT].view(s.TREE)[0]
    header = buffer[: s.TREE_AT].view(s.GRID)[0]
    places = {
        level: s.TREE_AT + int(tree[f"node_offset_{level}"]) for level in ("upper", "lower", "leaf")
    }
    blind = int(header["blind_metadata_offset"])
    return {
        "grid": 0,
        "tree": s.TREE_AT,
        "root": s.ROOT_AT,
        "tile": s.ROOT_AT + root.itemsize,
        **places,
        "blind": blind,
    }


KINDS = {
    "grid": s.GRID,
    "tree": s.TREE,
    "root": s.ROOT_INDEX,
    "tile": s.ROOT_TILE,
    "upper": s.UPPER,
    "lower": s.LOWER,
    "leaf": s.LEAF_INDEX,
    "blind": s.BLIND_METADATA,
}


def changed(part: str, field: str, value: object, buffer: np.ndarray = INDEX.buffer) -> np.ndarray:
    """A copy of a grid with one field of its first such structure set."""
    copy = buffer.copy()
    at, kind = starts(buffer, s.ROOT_INDEX)[part], KINDS[part]
    copy[at : at + kind.itemsize].view(kind)[0][field] = value
    return copy


def first_entry(part: str, value: int) -> np.ndarray:
    """A copy with the first used entry of a node's table set."""
    copy = INDEX.buffer.copy()
    at, kind = starts(copy, s.ROOT_INDEX)[part], KINDS[part]
    node = copy[at : at + kind.itemsize].view(kind)[0]
    node["table"][np.flatnonzero(node["table"])[0]] = value
    return copy


def root_tile_of_one_value() -> np.ndarray:
    """A copy whose only root tile is active and has no nodes below."""
    return changed("tile", "state", 1, changed("tile", "child", 0))


def test_the_grids_that_are_damaged_here_are_sound():
    for buffer in (INDEX.buffer, PACKED.buffer, FLOAT):
        assert problem_of_grid(buffer) == ""
        assert problem_of_file(write_bytes([buffer])) == ""


HUGE = (2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1)


@pytest.mark.parametrize(
    ("buffer", "problem"),
    [
        (INDEX.buffer[:100], "too few"),
        (INDEX.buffer[:-32], "not the length"),
        (changed("grid", "magic", 1), "begin as a grid"),
        (changed("grid", "version", s.version(33, 0, 0)), "version 33.0.0"),
        (changed("grid", "version", s.version(32, 2, 0)), "version 32.2.0"),
        (changed("grid", "grid_size", 2**63), "not the length"),
        (changed("grid", "grid_type", 2), "grid of type 2"),
        (changed("grid", "grid_type", s.TYPE_FLOAT), "number of voxels|do not fit|nodes"),
        (changed("grid", "checksum", (1, 2)), "checksum"),
        (changed("grid", "data1", 7), "number of values"),
        (changed("grid", "blind_metadata_offset", 0), "list of channels"),
        (changed("grid", "blind_metadata_offset", -32), "list of channels"),
        (changed("grid", "blind_metadata_offset", 2**62), "list of channels"),
        (changed("grid", "blind_metadata_count", 2**32 - 1), "list of channels"),
        (changed("grid", "blind_metadata_count", 0), "one value for each voxel"),
        (changed("tree", "node_offset_root", 96), "root lies"),
        (changed("tree", "node_offset_leaf", 64), "leaf nodes do not fit"),
        (changed("tree", "node_offset_upper", -(2**62)), "upper nodes do not fit"),
        (changed("tree", "node_count_leaf", 2**32 - 1), "leaf nodes do not fit"),
        (changed("tree", "node_count_lower", 0), "lower nodes are not those|do not fit"),
        (changed("tree", "voxel_count", 2**63), "number of voxels"),
        (changed("root", "table_size", 2**32 - 1), "root table is longer"),
        (changed("root", "table_size", 0), "upper nodes are not those|do not fit"),
        (changed("tile", "key", 2**63), "no table of tiles"),
        (changed("tile", "key", 2**20), "no table of tiles"),
        (changed("tile", "child", 2**62), "upper nodes are not those"),
        (changed("tile", "child", -1), "upper nodes are not those"),
        (changed("tile", "child", 0), "upper nodes are not those"),
        (root_tile_of_one_value(), "active tiles"),
        (changed("upper", "value_mask", 2**64 - 1), "active tiles"),
        (changed("upper", "child_mask", 2**64 - 1), "lower nodes are not those"),
        (changed("lower", "child_mask", 0), "leaf nodes are not those"),
        (first_entry("upper", 2**62), "lower nodes are not those"),
        (first_entry("upper", 8), "lower nodes are not those"),
        (first_entry("lower", -(2**63)), "leaf nodes are not those"),
        (changed("leaf", "value_mask", 0), "number of voxels"),
        (changed("leaf", "bbox_min", 2**31 - 1), "lies elsewhere"),
        (changed("leaf", "offset", 2**64 - 1), "begins at another index"),
        (changed("leaf", "prefix_sum", 1), "prefix sums"),
        (changed("blind", "data_offset", -(2**62)), "lies in another"),
        (changed("blind", "data_offset", 2**62), "does not fit"),
        (changed("blind", "data_offset", 289), "does not fit"),
        (changed("blind", "value_count", 2**64 - 1), "does not fit"),
        (changed("blind", "value_count", 3), "one value for each voxel"),
        (changed("blind", "value_size", 2**31), "odd size"),
        (changed("blind", "data_type", 5), "channel of type 5"),
        (changed("blind", "name", b"other"), "one value for each voxel"),
        (changed("blind", "name", b"a\0b"), "one name"),
        (changed("blind", "name", b"tensors", PACKED.buffer), "one name"),
    ],
)
def test_a_field_that_contradicts_the_others_is_found_out(buffer, problem):
    found = problem_of_grid(buffer)
    assert re.search(problem, found), found


@pytest.mark.parametrize("part", KINDS)
@pytest.mark.parametrize("value", [0, 1, *HUGE])
def test_no_number_in_any_field_does_harm(part, value):
    for field in KINDS[part].names or ():
        kind = KINDS[part][field].base
        if kind.kind in "iu":
            number = np.array([value % 2 ** (8 * kind.itemsize)], np.uint64)
            problem_of_grid(changed(part, field, number.astype(f"u{kind.itemsize}").view(kind)[0]))


PLACES = {
    id(buffer): [
        at + offset
        for part, at in starts(buffer, root).items()
        for offset in range(min(KINDS[part].itemsize, 320))
        if at + offset < len(buffer)
    ]
    for buffer, root in (
        (INDEX.buffer, s.ROOT_INDEX),
        (PACKED.buffer, s.ROOT_INDEX),
        (FLOAT, s.ROOT_FLOAT),
    )
}


@settings(max_examples=150, deadline=2000)
@given(data=st.data())
def test_flipped_bytes_are_judged(data):
    """In the structures, where all that is checked lies; the tables are mostly zeros."""
    buffer = data.draw(st.sampled_from([INDEX.buffer, PACKED.buffer, FLOAT]))
    copy = buffer.copy()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from(PLACES[id(buffer)]) | st.integers(0, len(buffer) - 1))
        copy[at] = data.draw(st.integers(0, 255))
    problem_of_grid(copy)


@settings(max_examples=80, deadline=2000)
@given(
    codec=st.sampled_from(["none", "zip"]),
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "drop", "double"])),
        min_size=1,
        max_size=3,
    ),
    near=st.booleans(),
)
def test_damaged_files_are_judged(codec, changes, near):
    data = bytearray(write_bytes([PACKED.buffer], codec))
    for where, what in changes:
        at = int(where * (250 if near else len(data) - 1))
        match what:
            case "flip":
                data[at : at + 1] = bytes([data[at] ^ 0x55]) if at < len(data) else b""
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + 7]
            case _:
                data[at:at] = data[at : at + 9]
    problem_of_file(bytes(data))


@given(data=st.binary(max_size=400), magic=st.sampled_from([b"", b"NanoVDB0", b"NanoVDB2"]))
def test_any_bytes_are_judged(data, magic):
    assert problem_of_file(magic + data)


@pytest.mark.parametrize("codec", ["none", "zip"])
def test_a_file_cut_anywhere_is_damaged(codec):
    data = write_bytes([PACKED.buffer], codec)
    lengths = [*range(0, 400, 7), *np.linspace(400, len(data) - 1, 25).astype(int).tolist()]
    for length in lengths:
        assert problem_of_file(data[:length]), length


@pytest.mark.parametrize("codec", ["none", "zip"])
def test_a_bit_that_flips_on_disk_is_found_out_or_changes_nothing(codec):
    """The checksums cover the whole grid; zlib may read the same zeros from another place."""
    data = write_bytes([PACKED.buffer], codec)
    (sound,) = read_bytes(data)
    for at in np.linspace(16 + 176 + 32 + 16, len(data) - 1, 60).astype(int).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 1
        if not problem_of_file(bytes(flipped)):
            (read,) = read_bytes(bytes(flipped))
            assert codec == "zip"
            assert (read.buffer == sound.buffer).all()


def _file(grid_size: int, stored: bytes, *, codec: int = 1, file_size: int | None = None) -> bytes:
    header, metadata = np.zeros(1, s.FILE_HEADER), np.zeros(1, s.FILE_METADATA)
    header["magic"], header["version"], header["grid_count"] = s.MAGIC_FILE, s.INDEX_VERSION, 1
    header["codec"] = codec
    metadata["grid_size"], metadata["name_size"] = grid_size, 1
    metadata["file_size"] = len(stored) if file_size is None else file_size
    return header.tobytes() + metadata.tobytes() + b"\0" + stored


def _zipped(data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    return struct.pack("<Q", len(packed)) + packed


BOMB = _zipped(bytes(32 << 20))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (_file(2**62, BOMB), "over"),
        (_file(2**20, b"\x08" + bytes(15)), "longer than it can be"),
        (_file(65 << 20, BOMB), "over"),
        (_file(1000, BOMB), "longer than it states"),
        (_file(2**20, _zipped(bytes(1000))), "longer than it can be|shorter"),
        (_file(2000, _zipped(bytes(1000))), "shorter than it states"),
        (_file(1000, _zipped(bytes(1000))[:-3]), "early|two lengths"),
        (_file(1000, struct.pack("<Q", 9) + b"not zlib!"), "unpacked"),
        (_file(1000, _zipped(bytes(1000)), file_size=2), "two lengths"),
        (_file(1000, bytes(2000), codec=0), "two lengths"),
        (_file(1000, bytes(1000), codec=0), "begin as a grid"),
        (_file(1000, b"", codec=0, file_size=2**63), "early"),
        (_file(1000, b"", codec=2), "Blosc"),
        (_file(1000, b"", codec=9), "codec 9"),
        (struct.pack("<QIHH", s.MAGIC_FILE, s.INDEX_VERSION, 0, 0), "holds no grid"),
        (struct.pack("<QIHH", s.MAGIC_FILE, s.INDEX_VERSION, 65535, 0), "early"),
    ],
)
def test_lengths_that_lie_are_found_out(data, problem):
    tracemalloc.start()
    found = problem_of_file(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert re.search(problem, found), found
    assert peak < 8 << 20  # the bomb would be 32 MB


def test_memory_is_a_small_multiple_of_the_grid():
    grid = scattered_grid(count=20_000, reach=200).buffer.copy()
    tracemalloc.start()
    assert problem_of_grid(grid) == ""
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(grid)
