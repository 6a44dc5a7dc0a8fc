"""A C program on PNanoVDB.h, the format's own header, finds our values in our files."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.nanovdb.files import write_file
from tests.vdb.lattice import scattered

SOURCE = Path(__file__).with_name("pnanovdb_judge.c")


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    compiler, warp = shutil.which("cc"), find_spec("warp")
    if compiler is None:
        pytest.skip("there is no C compiler: apt-get install gcc")
    if warp is None or warp.origin is None:
        pytest.skip("warp, which has the header, is not installed: pip install warp-lang")
    program = tmp_path_factory.mktemp("judge") / "pnanovdb_judge"
    headers = Path(warp.origin).parent / "native"
    command = [compiler, "-O1", "-w", "-I", headers, "-o", program, SOURCE, "-lm"]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize("kind", ["index", "float"])
@pytest.mark.parametrize("reach", [60, 9000])
def test_values_are_where_the_official_header_looks(judge, tmp_path, kind, reach):
    voxels = scattered(6, 60, reach)
    values = np.arange(1, 61, dtype=np.float32)
    grid = SparseGrid.of_coordinates(voxels, values, background=0.5)
    buffer = grid.buffer if kind == "index" else grid.float_grid()
    write_file(tmp_path / "grid.nvdb", [buffer], "none")
    asked = np.concatenate([voxels, voxels + np.int32(1), scattered(7, 500, 2**24)])
    (tmp_path / "voxels").write_bytes(asked.astype(np.int32).tobytes())
    command = [judge, tmp_path / "grid.nvdb", tmp_path / "voxels", tmp_path / "values"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    found = np.frombuffer((tmp_path / "values").read_bytes(), np.float32)
    assert (found == grid.lookup(asked)).all()
    assert [int(word) for word in said[1:]] == [len(grid.view.leaves), grid.num_voxels]
