"""Sets, clears and looks up voxels of a grid.

Values of active voxels change in place. Which voxels are active decides where every value lies, so
a change of that makes a new grid; the old one stays as it was.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.nanovdb.structures import Coordinates
from hyprstream.vdb.tensors import ARRAY_DTYPES

Voxel = tuple[int, int, int]


def get_voxel(grid: SparseGrid, voxel: Voxel) -> float | None:
    """Return the value of a voxel, of bfloat16 its bits; None if it is not active."""
    index = int(grid.view.index(_one(voxel))[0])
    return grid.channel[index].item() if index else None


def set_voxel(grid: SparseGrid, voxel: Voxel, value: float) -> SparseGrid:
    """Set one voxel; return the grid that has it, as `set_voxels` does."""
    return set_voxels(grid, _one(voxel), np.array([value], ARRAY_DTYPES[grid.dtype]))


def clear_voxel(grid: SparseGrid, voxel: Voxel) -> SparseGrid:
    """Make one voxel inactive; return the grid without it, as `clear_voxels` does."""
    return clear_voxels(grid, _one(voxel))


def set_voxels(grid: SparseGrid, coordinates: Coordinates, values: NDArray[Any]) -> SparseGrid:
    """Set voxels and make them active; of equal ones the last counts.

    Args:
        grid: The grid.
        coordinates: Where, (M, 3) int32.
        values: To what, (M,) in the array dtype of the grid.

    Returns:
        The grid itself, changed, if all were active; otherwise a new one.

    Raises:
        InvalidAdapterError: The arrays do not fit each other or the grid.
    """
    index = grid.view.index(coordinates)
    if (index > 0).all() and values.shape == index.shape and values.dtype == grid.values.dtype:
        grid.channel[index] = values
        return grid
    return _rebuilt(
        grid,
        np.concatenate([grid.coordinates(), coordinates]),
        np.concatenate([grid.values, values]),
    )


def clear_voxels(grid: SparseGrid, coordinates: Coordinates) -> SparseGrid:
    """Make voxels inactive.

    Args:
        grid: The grid.
        coordinates: Which, (M, 3) int32; those that are not active already are passed over.

    Returns:
        The grid itself if none was active; otherwise a new one.
    """
    index = grid.view.index(coordinates)
    keep = np.ones(len(grid.channel), np.bool_)
    keep[index] = False
    keep[0] = True
    if keep.all():
        return grid
    return _rebuilt(grid, grid.coordinates()[keep[1:]], grid.values[keep[1:]])


def _rebuilt(grid: SparseGrid, coordinates: Coordinates, values: NDArray[Any]) -> SparseGrid:
    return SparseGrid.of_coordinates(
        coordinates,
        values,
        grid.dtype,
        background=grid.channel[0].item(),
        name=grid.view.name,
        blind=grid.blind,
    )


def _one(voxel: Voxel) -> Coordinates:
    return np.array([voxel], np.int32)
