"""OpenVDB's own programs accept our float grids, and we read what they write.

Debian packages libnanovdb-tools and python3-openvdb, version 10.0.1 here. They are older than
index grids, on which `test_warp.py` and `test_pnanovdb.py` judge.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.nanovdb.files import open_file, write_file
from tests.vdb.lattice import by_voxel, recorded, scattered

TOOLS = ("nanovdb_validate", "nanovdb_print", "nanovdb_convert")
PYTHON = "/usr/bin/python3"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)),
    reason="OpenVDB's programs are not installed: apt-get install libnanovdb-tools",
)

READ = """
import json, pyopenvdb, sys
grid = pyopenvdb.readAllGridMetadata(sys.argv[1])[0].name
grid = pyopenvdb.read(sys.argv[1], grid)
found = []
for item in grid.citerOnValues():
    assert item.min == item.max and item.count == 1
    found.append([*item.min, item.value])
print(json.dumps([grid.name, grid.background, found]))
"""
WRITE = """
import json, pyopenvdb, sys
name, background, voxels = json.load(sys.stdin)
grid = pyopenvdb.FloatGrid(background)
grid.name = name
accessor = grid.getAccessor()
for *voxel, value in voxels:
    accessor.setValueOn(tuple(voxel), value)
pyopenvdb.write(sys.argv[1], [grid])
"""


def run(*command: object, text: str = "") -> str:
    """Run a program; its exit code says nothing in some of these."""
    done = subprocess.run(
        [str(part) for part in command], input=text, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def pyopenvdb() -> None:
    if not Path(PYTHON).exists() or run(PYTHON, "-c", "import pyopenvdb"):
        pytest.skip("pyopenvdb is not installed: apt-get install python3-openvdb")


GRIDS = {
    "near": (recorded()[0], 0.0),
    "far": (scattered(5, 12, 20_000), 0.5),
    "one": (np.zeros((1, 3), np.int32), 0.0),
    "corners": (np.array([[-(2**31)] * 3, [2**31 - 8] * 3], np.int32), 0.0),
    "full leaf": (np.argwhere(np.ones((8, 8, 8))).astype(np.int32) - 8, 0.0),
    "nothing": (np.zeros((0, 3), np.int32), 0.25),
}


def grid_of(name: str) -> SparseGrid:
    voxels, background = GRIDS[name]
    values = (np.arange(len(voxels)) / 4 - 7).astype(np.float32)
    return SparseGrid.of_coordinates(voxels, values, background=background, name=name)


@pytest.mark.parametrize("codec", ["none", "zip"])
@pytest.mark.parametrize("name", GRIDS)
def test_validator_passes_our_float_grids(tmp_path, name, codec):
    file = tmp_path / "float.nvdb"
    write_file(file, [grid_of(name).float_grid(), grid_of("one").float_grid()], codec)
    verdict = run("nanovdb_validate", "-v", file)
    assert f'Grid named "{name}": passed' in verdict
    assert "failed" not in verdict
    assert "xception" not in verdict


def test_validator_fails_a_grid_that_is_damaged(tmp_path):
    """So that the test above can fail."""
    file = tmp_path / "float.nvdb"
    write_file(file, [grid_of("near").float_grid()], "none")
    data = bytearray(file.read_bytes())
    data[-100_000] ^= 1
    data[16 + 176 + 32 + 700] ^= 1
    file.write_bytes(data)
    assert "passed" not in run("nanovdb_validate", "-v", file)


def test_listing_shows_what_the_file_holds(tmp_path):
    grid = grid_of("near")
    write_file(tmp_path / "float.nvdb", [grid.float_grid()], "zip")
    line = run("nanovdb_print", tmp_path / "float.nvdb").splitlines()[3]
    extent = np.ptp(grid.coordinates(), axis=0) + 1
    assert re.search(rf"near +float .* ZIP .* {grid.num_voxels} +", line)
    assert " x ".join(map(str, extent.tolist())) in line


@pytest.mark.usefixtures("pyopenvdb")
@pytest.mark.parametrize("name", ["near", "far", "one", "full leaf"])
def test_openvdb_reads_the_voxels_we_wrote(tmp_path, name):
    grid = grid_of(name)
    write_file(tmp_path / "ours.nvdb", [grid.float_grid()], "zip")
    run("nanovdb_convert", tmp_path / "ours.nvdb", tmp_path / "ours.vdb")
    found, background, voxels = json.loads(run(PYTHON, "-c", READ, tmp_path / "ours.vdb"))
    assert (found, background) == (name, GRIDS[name][1])
    expected = by_voxel(grid.coordinates(), grid.values)
    assert {(x, y, z): value for x, y, z, value in voxels} == expected


@pytest.mark.usefixtures("pyopenvdb")
@pytest.mark.parametrize("options", [[], ["-z"], ["-c", "full"], ["-c", "none"], ["-s", "none"]])
@pytest.mark.parametrize("name", ["near", "far"])
def test_we_read_the_voxels_that_openvdb_wrote(tmp_path, name, options):
    expected = grid_of(name)
    voxels = [
        [*voxel, value]
        for voxel, value in by_voxel(expected.coordinates(), expected.values).items()
    ]
    text = json.dumps([name, GRIDS[name][1], voxels])
    assert run(PYTHON, "-c", WRITE, tmp_path / "theirs.vdb", text=text) == ""
    run("nanovdb_convert", *options, tmp_path / "theirs.vdb", tmp_path / "theirs.nvdb")
    (view,) = open_file(tmp_path / "theirs.nvdb")
    found = SparseGrid.of_view(view)
    assert (view.name, view.background) == (name, GRIDS[name][1])
    assert (found.coordinates() == expected.coordinates()).all()
    assert (found.values == expected.values).all()


@pytest.mark.usefixtures("pyopenvdb")
def test_our_nodes_are_those_of_the_official_builder(tmp_path):
    """Byte by byte, except the header and the averages, which are summed in another order."""
    grid = grid_of("near")
    voxels = [[*v, value] for v, value in by_voxel(grid.coordinates(), grid.values).items()]
    run(PYTHON, "-c", WRITE, tmp_path / "a.vdb", text=json.dumps(["near", 0.0, voxels]))
    run("nanovdb_convert", tmp_path / "a.vdb", tmp_path / "a.nvdb")
    (theirs,) = open_file(tmp_path / "a.nvdb")
    ours = grid.float_grid()
    assert len(ours) == len(theirs.buffer)
    different = np.flatnonzero(ours[672:] != theirs.buffer[672:]) + 672
    view = SparseGrid.of_coordinates(grid.coordinates(), grid.values).view
    first_leaf = len(ours) - 2144 * len(view.leaves)
    in_leaf = (different[different >= first_leaf] - first_leaf) % 2144
    assert ((in_leaf >= 88) & (in_leaf < 96)).all()
    assert len(different) < 0.01 * 2144 * len(view.leaves)
