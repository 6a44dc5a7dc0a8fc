"""Block formats against gguf-py, bit for bit."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from hyprstream.errors import UnsupportedFormatError
from hyprstream.models.quant import FORMATS, BlockWeight


def reference(blocks: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):  # random scales overflow and are NaN at times
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


def random_blocks(kind: str, num_rows: int, num_blocks: int, seed: int = 0) -> np.ndarray:
    size = num_blocks * FORMATS[kind].size_bytes
    return np.random.default_rng(seed).integers(0, 256, (num_rows, size), dtype=np.uint8)


def assert_same_bits(actual: torch.Tensor, expected: np.ndarray) -> None:
    got = actual.numpy()
    assert got.dtype == expected.dtype == np.float32
    both_nan = np.isnan(got) & np.isnan(expected)
    assert np.array_equal(
        np.where(both_nan, 0, got.view(np.int32)), np.where(both_nan, 0, expected.view(np.int32))
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_sizes_of_blocks_are_those_of_ggml(kind: str) -> None:
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert (FORMATS[kind].num_weights, FORMATS[kind].size_bytes) == sizes


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (130, 2)])
def test_any_bytes_dequantise_to_the_bits_of_gguf_py(kind: str, shape: tuple[int, int]) -> None:
    blocks = random_blocks(kind, *shape)
    weight = BlockWeight(torch.from_numpy(blocks), kind)
    assert_same_bits(weight.dequantize(torch.float32), reference(blocks, kind))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("half", [0x0001, 0x03FF, 0x8001, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x0000])
def test_scales_at_the_edges_of_float16_dequantise_exactly(kind: str, half: int) -> None:
    blocks = random_blocks(kind, 4, 1)
    # Every pair of bytes that any format reads as float16 gets the value under test.
    for start in {0, 2, FORMATS[kind].size_bytes - 4, FORMATS[kind].size_bytes - 2}:
        blocks[:, start : start + 2] = np.frombuffer(np.uint16(half).tobytes(), dtype=np.uint8)
    weight = BlockWeight(torch.from_numpy(blocks), kind)
    assert_same_bits(weight.dequantize(torch.float32), reference(blocks, kind))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_weights_quantised_by_gguf_py_come_back(kind: str) -> None:
    dense = np.random.default_rng(1).normal(size=(64, 96)).astype(np.float32)
    blocks = gguf.quants.quantize(dense, gguf.GGMLQuantizationType[kind])
    weight = BlockWeight(torch.from_numpy(blocks), kind)
    assert weight.shape == dense.shape
    assert_same_bits(weight.dequantize(torch.float32), reference(blocks, kind))
    np.testing.assert_allclose(weight.dequantize(torch.float32), dense, atol=0.4)


def test_every_tensor_of_real_files_dequantises_to_the_bits_of_gguf_py(test_data: Path) -> None:
    kinds = set()
    for file in sorted((test_data / "stories260K" / "gguf").rglob("*.gguf")):
        for tensor in gguf.GGUFReader(file).tensors:
            kind = tensor.tensor_type.name
            if kind not in FORMATS:
                continue
            kinds.add(kind)
            blocks = np.array(tensor.data)
            weight = BlockWeight(torch.from_numpy(blocks), kind)
            assert weight.shape == tuple(reversed(tensor.shape.tolist()))
            assert_same_bits(weight.dequantize(torch.float32), reference(blocks, kind))
    assert kinds >= {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_those_of_the_whole_matrix(kind: str) -> None:
    weight = BlockWeight(torch.from_numpy(random_blocks(kind, 9, 2)), kind)
    ids = torch.tensor([8, 0, 3, 3])
    whole = weight.dequantize(torch.float32)
    assert torch.equal(weight.rows(ids, torch.float32).nan_to_num(), whole[ids].nan_to_num())
    assert weight.rows(ids[:0], torch.bfloat16).shape == (0, weight.shape[1])


def test_unpacking_leaves_the_bytes_alone() -> None:
    for kind in FORMATS:
        blocks = torch.from_numpy(random_blocks(kind, 8, 2))
        before = blocks.clone()
        weight = BlockWeight(blocks, kind)
        weight.dequantize(torch.float32)
        weight.matmul(torch.ones(1, weight.shape[1]))
        assert torch.equal(blocks, before), kind


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFormatError, match="'IQ2_XXS'") as caught:
        BlockWeight(torch.zeros(1, 66, dtype=torch.uint8), "IQ2_XXS")
    assert "Q4_K" in caught.value.hint
