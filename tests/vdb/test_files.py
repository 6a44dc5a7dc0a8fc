"""Files: what comes out is what went in, mapped where it can be; and what others wrote."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hyprstream.errors import CorruptGridError, StorageFullError, UnsupportedFormatError
from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.nanovdb.files import name_key, open_file, read_bytes, write_bytes, write_file
from hyprstream.vdb.nanovdb.structures import FILE_METADATA
from hyprstream.vdb.opaque import opaque_data, opaque_grid
from tests.vdb.lattice import by_voxel, recorded, scattered_grid

GOLDEN = Path(__file__).parents[1] / "golden" / "vdb"


@pytest.mark.parametrize("codec", ["none", "zip"])
def test_a_file_holds_index_and_float_grids(tmp_path, codec):
    grids = [scattered_grid(1), scattered_grid(2, dtype="bfloat16"), scattered_grid(3)]
    file = tmp_path / "three.nvdb"
    write_file(file, [grids[0].buffer, grids[1].buffer, grids[2].float_grid()], codec)
    for view, grid in zip(open_file(file), grids, strict=True):
        found = SparseGrid.of_view(view)
        assert found.dtype == grid.dtype
        assert (found.coordinates() == grid.coordinates()).all()
        assert (found.channel == grid.channel).all()
    assert write_bytes([grids[0].buffer], codec) in file.read_bytes()


def _is_mapped(address: int, file: Path) -> bool:
    """Whether an address lies in a mapping of a file, as the kernel tells it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, name = line.split()
        start, end = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < end:
            return name == str(file)
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks the kernel of Linux")
@pytest.mark.parametrize("name", ["", "a name that is not short, so that padding differs"])
def test_a_grid_that_is_not_compressed_is_mapped_and_never_changes_its_file(tmp_path, name):
    voxels, values = recorded()
    file = tmp_path / "mapped.nvdb"
    write_file(file, [SparseGrid.of_coordinates(voxels, values, name=name).buffer], "none")
    before = file.read_bytes()
    grid = SparseGrid.of_view(open_file(file)[0])
    assert grid.view.name == name
    tensor = torch.from_numpy(grid.values)
    assert _is_mapped(tensor.data_ptr(), file)
    assert grid.buffer.ctypes.data % 32 == 0
    tensor += 1
    assert grid.values[0] == tensor[0]
    assert file.read_bytes() == before


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "grid.nvdb"
    write_file(file, [scattered_grid(1).buffer], "none")
    old = SparseGrid.of_view(open_file(file)[0])
    write_file(file, [scattered_grid(2).buffer], "none")
    assert (old.channel == scattered_grid(1).channel).all()
    assert (open_file(file)[0].coordinates() == scattered_grid(2).coordinates()).all()
    assert [path.name for path in tmp_path.iterdir()] == ["grid.nvdb"]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(StorageFullError):
        write_file(tmp_path / "missing" / "grid.nvdb", [scattered_grid().buffer])


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(CorruptGridError, match="cannot be read"):
        open_file(tmp_path / "missing.nvdb")
    (tmp_path / "empty.nvdb").touch()
    with pytest.raises(CorruptGridError, match="empty"):
        open_file(tmp_path / "empty.nvdb")


def test_edits_are_covered_by_the_checksum_of_the_next_file():
    grid = scattered_grid()
    SparseGrid.of_view(read_bytes(write_bytes([grid.buffer], "none"))[0])
    grid.values[:] = 5
    (view,) = read_bytes(write_bytes([grid.buffer], "none"))
    assert (SparseGrid.of_view(view).values == 5).all()


def test_metadata_says_what_the_grid_says():
    grid = scattered_grid()
    data = write_bytes([grid.buffer], "none")
    metadata = np.frombuffer(data[16 : 16 + 176], FILE_METADATA)[0]
    assert metadata["voxel_count"] == grid.num_voxels
    assert metadata["index_bbox"][:3].tolist() == grid.coordinates().min(axis=0).tolist()
    assert metadata["index_bbox"][3:].tolist() == grid.coordinates().max(axis=0).tolist()
    assert metadata["node_count"].tolist()[3] == 1
    assert metadata["file_size"] == metadata["grid_size"] == len(grid.buffer)
    assert metadata["name_key"] == name_key(b"scattered")


def test_coded_data_makes_a_small_file():
    stream = os.urandom(1000)
    data = write_bytes([opaque_grid({"stream": stream, "more": b""}, name="coded")])
    assert len(data) < len(stream) + 500
    (view,) = read_bytes(data)
    assert opaque_data(view) == {"stream": stream, "more": b""}
    assert (view.num_voxels, view.name) == (0, "coded")


@pytest.mark.parametrize(
    "file", ["convert-zip", "convert-full-checksum-zip", "warp-index-zip", "index-zip"]
)
def test_files_that_were_written_before_are_read(file):
    """By nanovdb_convert 10.0.1 of Debian, by warp 1.19, and by an earlier version of this."""
    (view,) = open_file(GOLDEN / f"{file}.nvdb")
    voxels, values = recorded()
    if file.startswith("warp"):  # its files have no values
        assert {tuple(row) for row in view.coordinates().tolist()} == set(by_voxel(voxels, values))
        return
    grid = SparseGrid.of_view(view)
    assert by_voxel(grid.coordinates(), grid.values) == by_voxel(voxels, values)


def test_an_index_grid_without_values_is_no_sparse_grid():
    (view,) = open_file(GOLDEN / "warp-index-zip.nvdb")
    with pytest.raises(CorruptGridError, match="one value for each voxel"):
        SparseGrid.of_view(view)


def test_blosc_is_refused_by_name():
    with pytest.raises(UnsupportedFormatError, match="Blosc"):
        open_file(GOLDEN / "convert-blosc.nvdb")


def test_active_tiles_are_refused_by_name():
    with pytest.raises(UnsupportedFormatError, match="active tiles"):
        open_file(GOLDEN / "convert-tile-zip.nvdb")


def test_other_grid_types_are_refused_by_name():
    with pytest.raises(UnsupportedFormatError, match="grid of type 14"):
        open_file(GOLDEN / "convert-fp8-zip.nvdb")
