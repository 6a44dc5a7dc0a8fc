"""Editing a grid is editing a dictionary, one voxel or many at a time."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.edit import (
    clear_voxel,
    clear_voxels,
    get_voxel,
    set_voxel,
    set_voxels,
)
from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.nanovdb.reader import open_grid
from tests.vdb.lattice import coordinates, scattered_grid

PLACES = st.tuples(*[st.sampled_from([-4097, -1, 0, 1, 8, 4096])] * 3)
VALUES = st.integers(0, 99)


class Editing(RuleBasedStateMachine):
    """The grid beside the dictionary that it should be."""

    def __init__(self) -> None:
        super().__init__()
        nowhere = np.zeros((0, 3), np.int32)
        self.grid = SparseGrid.of_coordinates(
            nowhere, np.zeros(0, np.float32), name="n", blind={"more": b"data"}
        )
        self.expected: dict[tuple[int, ...], float] = {}

    @rule(changes=st.lists(st.tuples(PLACES, VALUES), max_size=5))
    def set_some(self, changes):
        active = all(voxel in self.expected for voxel, _ in changes)
        where = coordinates(voxel for voxel, _ in changes)
        values = np.array([value for _, value in changes], np.float32)
        before = self.grid
        self.grid = set_voxels(self.grid, where, values)
        assert (self.grid is before) == active
        self.expected |= dict(changes)

    @rule(voxel=PLACES, value=VALUES)
    def set_one(self, voxel, value):
        self.grid = set_voxel(self.grid, voxel, value)
        self.expected[voxel] = value

    @rule(voxels=st.lists(PLACES, max_size=5))
    def clear_some(self, voxels):
        before = self.grid
        self.grid = clear_voxels(self.grid, coordinates(voxels))
        assert (self.grid is before) == (not any(voxel in self.expected for voxel in voxels))
        for voxel in voxels:
            self.expected.pop(voxel, None)

    @rule(voxel=PLACES)
    def clear_one(self, voxel):
        self.grid = clear_voxel(self.grid, voxel)
        self.expected.pop(voxel, None)

    @rule(voxel=PLACES)
    def get_one(self, voxel):
        assert get_voxel(self.grid, voxel) == self.expected.get(voxel)

    @invariant()
    def grid_is_the_dictionary(self):
        found = SparseGrid.of_view(open_grid(self.grid.buffer))
        voxels = [tuple(row) for row in found.coordinates().tolist()]
        assert dict(zip(voxels, found.values.tolist(), strict=True)) == self.expected
        assert (found.view.name, found.blind) == ("n", {"more": b"data"})


TestEditing = Editing.TestCase
TestEditing.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)


def test_a_new_grid_leaves_the_old_one_as_it_was():
    grid = scattered_grid()
    before = grid.buffer.copy()
    set_voxel(grid, (5000, 0, 0), 1.0)
    clear_voxels(grid, grid.coordinates()[:10])
    assert (grid.buffer == before).all()


def test_values_that_do_not_fit_the_grid_are_refused():
    grid = scattered_grid()
    with pytest.raises(InvalidAdapterError):
        set_voxels(grid, grid.coordinates()[:2], np.zeros(2, np.float64))
    with pytest.raises(InvalidAdapterError):
        set_voxels(grid, grid.coordinates()[:2], np.zeros(1, np.float32))
