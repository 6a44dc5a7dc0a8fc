"""NVIDIA Warp, which has NanoVDB's own code inside, finds our voxels where we put them."""

import gc
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptGridError, UnsupportedError
from hyprstream.vdb.grid import SparseGrid, widened
from hyprstream.vdb.layout import pack_tensors
from hyprstream.vdb.nanovdb.files import open_file, write_bytes
from hyprstream.vdb.opaque import opaque_grid
from hyprstream.vdb.tensors import SparseTensor
from hyprstream.vdb.warp_volume import as_volume
from tests.vdb.judge import problem_of_grid
from tests.vdb.lattice import by_voxel, recorded, scattered, scattered_grid


@pytest.fixture(scope="module")
def wp(tmp_path_factory):
    """Warp, which keeps compiled kernels in a folder of these tests."""
    warp = pytest.importorskip("warp", reason="warp is not installed: pip install warp-lang")
    warp.config.kernel_cache_dir = str(tmp_path_factory.mktemp("kernels"))
    warp.config.quiet = True
    warp.init()
    return warp


def load(wp, buffer: np.ndarray, codec="none"):
    return wp.Volume.load_from_nvdb(write_bytes([buffer], codec), device="cpu")


def launch(wp, kernel: str, volume, voxels: np.ndarray, out) -> np.ndarray:
    from tests.vdb import warp_kernels

    inputs = [volume.id, wp.array(voxels, dtype=wp.vec3i, device="cpu"), out]
    wp.launch(getattr(warp_kernels, kernel), dim=len(voxels), inputs=inputs, device="cpu")
    return out.numpy()


def asked(voxels: np.ndarray) -> np.ndarray:
    """Voxels, their neighbours, and some far away."""
    near = np.concatenate([voxels + step for step in np.eye(3, dtype=np.int32)])
    return np.concatenate([voxels, near, scattered(9, 100, 2**20)]).astype(np.int32)


@pytest.mark.parametrize("codec", ["none", "zip"])
@pytest.mark.parametrize("reach", [30, 9000])
def test_warp_numbers_voxels_as_we_do(wp, codec, reach):
    grid = SparseGrid.of_coordinates(
        scattered(3, 40, reach), np.arange(40, dtype=np.float32), name="grid"
    )
    volume = load(wp, grid.buffer, codec)
    assert volume.get_grid_info().type_str == "OnIndex"
    assert volume.get_grid_info().name == "grid"
    assert (volume.get_voxels().numpy() == grid.coordinates()).all()
    voxels = asked(grid.coordinates())
    out = wp.zeros(len(voxels), dtype=wp.int32, device="cpu")
    found = launch(wp, "look_up_index", volume, voxels, out)
    assert (found == grid.view.index(voxels) - 1).all()
    assert (volume.feature_array(0).numpy() == grid.channel).all()


def test_warp_reads_every_dtype_of_values(wp):
    halves, brains = scattered_grid(dtype="float16"), scattered_grid(dtype="bfloat16")
    assert (load(wp, halves.buffer).feature_array(0).numpy() == halves.channel).all()
    bits = load(wp, brains.buffer).feature_array(0, dtype=wp.uint16)
    assert (bits.numpy() == brains.channel).all()


def test_warp_reads_an_adapter_and_its_table(wp):
    dense = np.arange(4000, dtype=np.float32).reshape(40, 100)
    tensor = SparseTensor.from_dense(dense, "float32", dense % 9 == 0)
    grid = pack_tensors({"q/low_rank/a": tensor})
    volume = load(wp, grid.buffer, "zip")
    assert volume.get_feature_array_info(1).name == "tensors"
    assert volume.feature_array(1, dtype=wp.uint8).numpy().tobytes() == grid.blind["tensors"]
    voxels = grid.coordinates()
    out = wp.zeros(len(voxels), dtype=wp.int32, device="cpu")
    place = launch(wp, "look_up_index", volume, voxels, out) + 1
    assert (volume.feature_array(0).numpy()[place] == dense[dense % 9 == 0]).all()


def test_warp_reads_our_float_grids(wp):
    voxels, values = recorded()
    grid = SparseGrid.of_coordinates(voxels, values, background=0.5)
    where = asked(voxels)
    out = wp.zeros(len(where), dtype=wp.float32, device="cpu")
    found = launch(wp, "look_up_float", load(wp, grid.float_grid()), where, out)
    assert (found == widened(grid.lookup(where), "float32")).all()


def test_warp_reads_coded_data(wp):
    volume = load(wp, opaque_grid({"stream": b"\1\2\3"}), "zip")
    assert volume.get_voxel_count() == 0
    assert volume.feature_array(0, dtype=wp.uint8).numpy().tobytes() == b"\1\2\3"


@pytest.mark.parametrize("codec", ["none", "zip"])
def test_we_read_what_warp_writes(wp, codec, tmp_path):
    file = tmp_path / "warp.nvdb"
    voxels = scattered(4, 100, 6000)
    points = wp.array(voxels, dtype=wp.vec3i, device="cpu")
    volume = wp.Volume.allocate_by_voxels(points, voxel_size=1.0, device="cpu")
    volume.save_to_nvdb(str(file), codec=codec)
    (view,) = open_file(file)
    assert (view.coordinates() == volume.get_voxels().numpy()).all()
    cells = scattered(5, 20, 300)
    points = wp.array(cells, dtype=wp.vec3i, device="cpu")
    volume = wp.Volume.allocate_by_tiles(points, 1.0, bg_value=0.0, device="cpu")
    volume.save_to_nvdb(str(file), codec=codec)
    (view,) = open_file(file)
    tiles = {tuple(row) for row in (view.coordinates() >> 3).tolist()}
    assert tiles == {tuple(row) for row in (cells >> 3).tolist()}


def test_warp_torch_and_numpy_share_one_memory(wp):
    grid = scattered_grid()
    volume = as_volume(grid.buffer)
    assert volume.id == grid.buffer.ctypes.data
    before = grid.values.copy()
    torch.from_numpy(grid.values).add_(1)
    launch(wp, "double_values", volume, grid.coordinates(), volume.feature_array(0))
    assert (grid.values == 2 * (before + 1)).all()
    assert wp.to_torch(volume.feature_array(0))[1] == grid.values[0]


@pytest.mark.usefixtures("wp")
def test_a_volume_keeps_the_memory_of_its_grid():
    grid = scattered_grid()
    expected, address = grid.coordinates(), grid.buffer.ctypes.data
    memory = weakref.ref(grid.buffer.base)
    volume = as_volume(grid.buffer)
    del grid
    gc.collect()
    assert memory() is not None
    assert volume.id == address
    assert (volume.get_voxels().numpy() == expected).all()
    del volume
    gc.collect()
    assert memory() is None


def test_a_grid_that_is_not_sound_never_reaches_warp():
    buffer = scattered_grid().buffer.copy()
    buffer[736 + 96 + 8] ^= 1  # where the root's first tile leads to
    with pytest.raises(CorruptGridError):
        as_volume(buffer)


def test_missing_warp_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(UnsupportedError, match="not installed") as raised:
        as_volume(scattered_grid().buffer)
    assert "pip install" in raised.value.hint


SOUND = scattered_grid(count=50, reach=20).buffer


@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 1000) | st.integers(0, len(SOUND) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=2,
    )
)
def test_what_we_accept_warp_accepts(wp, changes):
    """Its validator is an independent one of trees; ours looks at more."""
    buffer = SOUND.copy()
    for at, value in changes:
        buffer[at] = value
    if not problem_of_grid(buffer):
        load(wp, buffer)


def test_voxels_of_equal_place_are_one_as_in_warp(wp):
    voxels, values = recorded()
    twice = np.concatenate([voxels, voxels])
    grid = SparseGrid.of_coordinates(twice, np.concatenate([values, values + 1]))
    points = wp.array(twice, dtype=wp.vec3i, device="cpu")
    volume = wp.Volume.allocate_by_voxels(points, voxel_size=1.0, device="cpu")
    assert (volume.get_voxels().numpy() == grid.coordinates()).all()
    assert by_voxel(grid.coordinates(), grid.values) == by_voxel(voxels, values + 1)
