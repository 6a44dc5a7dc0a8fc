"""Adapters that people trained, whole and sparse, and the program in the documents."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.layout import pack_tensors, unpack_tensors
from hyprstream.vdb.nanovdb.files import read_bytes, write_bytes
from hyprstream.vdb.tensors import DType, SparseTensor
from tests.project.pages import DOCS, blocks

NAMES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def sparse(weight: torch.Tensor, share: float | None) -> SparseTensor:
    """The largest `share` of a weight, or all of it."""
    mask = None
    if share is not None:
        sizes = weight.float().abs()
        least = sizes.flatten().kthvalue(max(1, round(sizes.numel() * (1 - share)))).values
        mask = (sizes > least).numpy()
    dtype = NAMES[weight.dtype]
    bits = weight.view(torch.uint16) if dtype == "bfloat16" else weight
    return SparseTensor.from_dense(bits.numpy(), dtype, mask)


@pytest.mark.parametrize("share", [None, 0.01])
def test_adapters_come_out_bit_for_bit(test_data, share):
    files = sorted((test_data / "lora").rglob("adapter_model.safetensors"))
    assert files
    for file in files:
        tensors = {
            name: sparse(weight, share)
            for name, weight in load_file(file).items()
            if weight.dtype in NAMES
        }
        (view,) = read_bytes(write_bytes([pack_tensors(tensors).buffer], "none"))
        found = unpack_tensors(SparseGrid.of_view(view))
        assert list(found) == list(tensors)
        for name, tensor in tensors.items():
            assert found[name].shape == tensor.shape
            assert found[name].values.tobytes() == tensor.values.tobytes()
            np.testing.assert_equal(found[name].indices, tensor.indices)


def test_the_program_of_the_page_runs(tmp_path):
    (program,) = blocks(DOCS / "design" / "grids.md", "python")
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter.nvdb", "volume.nvdb"]
