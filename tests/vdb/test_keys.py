"""Keys sort as NanoVDB orders voxels, however many bits they need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.vdb.nanovdb import keys as keying
from hyprstream.vdb.nanovdb import topology, writer
from tests.vdb.lattice import scattered


@pytest.mark.parametrize("bits", [36, 62, 64])
@given(data=st.data())
def test_keys_are_sorted_and_the_last_of_equal_ones_is_kept(bits, data):
    """Those of 62 bits and more do not fit beside their number in one integer."""
    few = st.sampled_from([0, 1, 5, 2**bits - 2, 2**bits - 1])
    keys = data.draw(st.lists(few | st.integers(0, 2**bits - 1), max_size=12))
    last = {key: place for place, key in enumerate(keys)}
    found, order = keying.sorted_unique(np.array(keys, np.uint64))
    assert found.tolist() == sorted(last)
    places = range(len(keys)) if order is None else order.tolist()
    assert list(places) == [last[key] for key in sorted(last)]


def test_tiles_are_found_again_from_their_keys():
    voxels = scattered(8, 200, 2**31 - 1)
    origins = keying.tile_origins(keying.tile_keys(voxels))
    assert (origins == voxels >> 12 << 12).all()
    within = keying.coordinates_within_tile(keying.keys_within_tile(voxels))
    assert (origins + within == voxels).all()


def test_tile_keys_are_those_of_the_format():
    """NanoVDB.h, RootData::CoordToKey: 20 bits of each coordinate, 21 apart, z lowest."""
    voxel = np.array([[4096, -1, 8191]], np.int32)
    assert keying.tile_keys(voxel).tolist() == [(1 << 42) | (0xFFFFF << 21) | 1]


def test_an_index_grid_may_have_no_values():
    view = writer.index_grid(topology.of_coordinates(scattered(1, 9, 50)), ())
    assert (len(view.channels), view.num_voxels, view.background) == (0, 9, 0.0)
    assert (view.index(view.coordinates()) == np.arange(1, 10)).all()
