"""A grid gives back what was put in, whatever the order; a dictionary is the judge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.grid import SparseGrid, narrowed, widened
from hyprstream.vdb.nanovdb.reader import open_grid
from hyprstream.vdb.statistics import statistics
from hyprstream.vdb.tensors import ARRAY_DTYPES
from tests.vdb.lattice import DTYPES, VOXELS, coordinates, scattered, scattered_grid

FEW = settings(max_examples=40, deadline=None)


@FEW
@given(
    voxels=st.lists(st.tuples(VOXELS, st.integers(0, 200)), max_size=12),
    others=st.lists(VOXELS, max_size=6),
    dtype=DTYPES,
)
def test_grid_is_a_dictionary_of_voxels(voxels, others, dtype):
    expected = dict(voxels)
    where = coordinates(voxel for voxel, _ in voxels)
    values = np.array([value for _, value in voxels], ARRAY_DTYPES[dtype])
    grid = SparseGrid.of_coordinates(where, values, dtype, background=201)
    found = [tuple(row) for row in grid.coordinates().tolist()]
    assert dict(zip(found, grid.values.tolist(), strict=True)) == expected
    asked = coordinates([*expected, *others])
    assert grid.lookup(asked).tolist() == [expected.get(tuple(row), 201) for row in asked.tolist()]
    assert grid.is_active(asked).tolist() == [tuple(row) in expected for row in asked.tolist()]


@FEW
@given(voxels=st.lists(VOXELS, min_size=1, max_size=8, unique=True))
def test_voxels_are_numbered_in_the_order_of_nanovdb(voxels):
    """By signed tile, then by the bits of each node: the order a sort of tuples gives."""
    grid = SparseGrid.of_coordinates(coordinates(voxels), np.zeros(len(voxels), np.float32))

    def path(voxel):
        parts = [tuple(c >> 12 for c in voxel)]
        for low, bits in ((7, 5), (3, 4), (0, 3)):
            parts.append(tuple(c >> low & ((1 << bits) - 1) for c in voxel))
        return parts

    assert [tuple(row) for row in grid.coordinates().tolist()] == sorted(voxels, key=path)
    assert grid.view.index(grid.coordinates()).tolist() == list(range(1, len(voxels) + 1))


def test_keys_are_coordinates_of_the_first_tile():
    voxels = np.abs(scattered(1, 1000, 4096))
    by_place = SparseGrid.of_coordinates(voxels, np.arange(len(voxels), dtype=np.float32))
    by_key = SparseGrid.of_keys(by_place.view.keys(), by_place.values)
    assert (by_key.buffer == by_place.buffer).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_the_memory_of_the_grid_and_of_torch(dtype):
    grid = scattered_grid(dtype=dtype)
    tensor = torch.from_numpy(grid.values)
    tensor[3] = 77
    assert grid.channel[4] == 77
    assert SparseGrid.of_view(open_grid(grid.buffer)).values[3] == 77
    start = grid.buffer.ctypes.data
    assert start <= tensor.data_ptr() < start + len(grid.buffer)
    assert start % 32 == 0


def test_every_number_of_sixteen_bits_survives_widening():
    bits = np.arange(2**16, dtype=np.uint16)
    halves = bits.view(np.float16)
    assert (narrowed(widened(bits, "bfloat16"), "bfloat16") == bits).all()
    assert (narrowed(widened(halves, "float16"), "float16").view(np.uint16) == bits).all()
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    expected = numbers.float().numpy().view(np.uint32)
    assert (widened(bits, "bfloat16").view(np.uint32) == expected).all()


def test_float_grid_holds_the_same_voxels_and_background():
    grid = SparseGrid.of_coordinates(
        scattered(2, 500, 5000), np.arange(500, dtype=np.float32), background=0.25, name="d"
    )
    view = open_grid(grid.float_grid())
    again = SparseGrid.of_view(view)
    assert (again.coordinates() == grid.coordinates()).all()
    assert (again.channel == grid.channel).all()
    assert (view.kind, view.name, view.background) == ("float", "d", 0.25)


def test_statistics_of_a_float_grid_are_those_of_its_values():
    grid = scattered_grid(reach=300)
    view = open_grid(grid.float_grid())
    values = view.leaf_values().astype(np.float64)
    expected = [values.min(), values.max(), values.mean(), values.std()]
    root = view.buffer[736 + 28 + 4 :][:16].view(np.float32)
    np.testing.assert_allclose(root, expected, rtol=1e-6)
    leaf, _ = view.active()
    first = values[leaf == 0]
    expected = [first.min(), first.max(), first.mean(), first.std()]
    np.testing.assert_allclose(view.leaves["statistics"][0], expected, rtol=1e-6)


def test_grid_without_voxels_has_no_nodes():
    grid = SparseGrid.of_coordinates(np.zeros((0, 3), np.int32), np.zeros(0, np.float32))
    assert grid.num_voxels == 0
    assert len(grid.buffer) < 1300
    assert not grid.is_active(np.zeros((2, 3), np.int32)).any()
    assert len(open_grid(grid.float_grid()).coordinates()) == 0


def test_statistics_count_every_byte():
    grid = scattered_grid()
    counted = statistics(grid.view)
    assert counted.total_bytes == len(grid.buffer)
    leaves = np.unique(grid.coordinates() >> 3, axis=0)
    assert counted.num_leaves == len(leaves)
    assert counted.leaf_density == pytest.approx(grid.num_voxels / (512 * len(leaves)))
    assert counted.leaf_bytes == 96 * len(leaves)
    assert counted.channel_bytes == 4 * (grid.num_voxels + 1)


@pytest.mark.parametrize(
    ("where", "values", "name"),
    [
        (np.zeros((2, 2), np.int32), np.zeros(2, np.float32), ""),
        (np.zeros((2, 3), np.int32), np.zeros(3, np.float32), ""),
        (np.zeros((2, 3), np.int32), np.zeros(2, np.float64), ""),
        (np.zeros((2, 3), np.int32), np.zeros(2, np.float32), "x" * 256),
        (np.zeros((2, 3), np.int32), np.zeros(2, np.float32), "a\0b"),
        (np.zeros((2, 3), np.int32), np.zeros(2, np.float32), "\ud800"),
    ],
)
def test_arguments_that_make_no_grid_are_refused(where, values, name):
    with pytest.raises(InvalidAdapterError):
        SparseGrid.of_coordinates(where, values, name=name)


def test_key_of_more_than_36_bits_is_refused():
    with pytest.raises(InvalidAdapterError, match="36 bits"):
        SparseGrid.of_keys(np.array([2**36], np.uint64), np.zeros(1, np.float32))


@pytest.mark.parametrize("reach", [20, 9000])
def test_a_grid_that_was_built_is_viewed_as_one_that_was_read(reach):
    built = scattered_grid(count=30, reach=reach).view
    read = open_grid(built.buffer)
    for field in ("tiles", "tile_uppers", "leaf_paths", "leaves", "lowers", "uppers"):
        assert (getattr(built, field) == getattr(read, field)).all(), field
    assert built.layout is read.layout
    assert built.channels.keys() == read.channels.keys()
    for name, channel in built.channels.items():
        assert channel.dtype == read.channels[name].dtype
        assert (channel == read.channels[name]).all()
