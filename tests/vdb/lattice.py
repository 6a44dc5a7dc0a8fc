"""Voxels to try grids on, and a dictionary that does what a grid does."""

import numpy as np
from hypothesis import strategies as st

from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.tensors import ARRAY_DTYPES, DType

NEAR = st.integers(-9, 9)  # both sides of a tile, and neighbours in a leaf
FAR = st.sampled_from(
    [-(2**31), -(2**31) + 7, -4097, -4096, -1, 0, 7, 8, 127, 128, 4095, 4096, 2**31 - 1]
)
VOXELS = st.tuples(*[NEAR | FAR] * 3)
DTYPES: st.SearchStrategy[DType] = st.sampled_from(["float32", "float16", "bfloat16"])


def coordinates(voxels) -> np.ndarray:
    return np.array(list(voxels), np.int32).reshape(-1, 3)


def scattered(seed: int, count: int, reach: int) -> np.ndarray:
    """`count` different voxels less than `reach` away from the origin, in no order."""
    rng = np.random.default_rng(seed)
    found = np.unique(rng.integers(-reach, reach, (count * 2, 3)).astype(np.int32), axis=0)
    return rng.permutation(found)[:count]


def scattered_grid(
    seed: int = 0, count: int = 2000, reach: int = 100, dtype: DType = "float32"
) -> SparseGrid:
    """A grid of such voxels, the values numbers that every dtype holds."""
    voxels = scattered(seed, count, reach)
    numbers = np.arange(1, len(voxels) + 1) % 251
    values = numbers.astype(ARRAY_DTYPES[dtype])
    return SparseGrid.of_coordinates(voxels, values, dtype, name="scattered")


def recorded() -> tuple[np.ndarray, np.ndarray]:
    """The voxels and values of the files in tests/golden/vdb."""
    count = np.arange(300, dtype=np.int32)
    voxels = np.stack([count * 7 % 61 - 30, count * 11 % 53 - 26, count * 13 % 47 - 23], axis=1)
    return voxels, (count / 4).astype(np.float32)


def by_voxel(coordinates: np.ndarray, values: np.ndarray) -> dict[tuple[int, ...], float]:
    rows = [tuple(row) for row in coordinates.tolist()]
    return dict(zip(rows, values.tolist(), strict=True))
