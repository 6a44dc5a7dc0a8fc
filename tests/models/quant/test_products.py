"""Products of every storage against plain matrices."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyprstream.models.quant import (
    FORMATS,
    BlockWeight,
    DenseWeight,
    PackedWeight,
    Weight,
    quantize,
)
from hyprstream.models.quant.products import row_chunks

HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}  # float16 scales; others at 0, 2
WITH_MINIMUM = {"Q4_1", "Q5_1", "Q4_K", "Q5_K"}


def block_weight(kind: str, num_rows: int, width: int) -> BlockWeight:
    """Random codes with scales that make weights of ordinary size."""
    layout = FORMATS[kind]
    shape = (num_rows, width // layout.num_weights, layout.size_bytes)
    blocks = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    scale = np.array([0.003], dtype=np.float16).view(np.uint8)
    for start in HALVES.get(kind, (0, 2) if kind in WITH_MINIMUM else (0,)):
        blocks[..., start : start + 2] = scale
    return BlockWeight(torch.from_numpy(blocks.reshape(num_rows, -1)), kind)


def dense(kind: str, num_rows: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(kind))
    return torch.randn(num_rows, width, generator=generator) * 0.05


def make(kind: str, num_rows: int = 100, width: int = 512) -> Weight:
    if kind in FORMATS:
        return block_weight(kind, num_rows, width)
    if kind == "dense":
        return DenseWeight(dense(kind, num_rows, width))
    return quantize(dense(kind, num_rows, width), "int4" if kind == "int4" else "int8")


QUANTISED = [*FORMATS, "int4", "int8"]


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("num_rows", [1, 3, 17, 70])
def test_float32_product_is_that_of_the_dequantised_matrix(kind: str, num_rows: int) -> None:
    weight = make(kind)
    x = torch.randn(num_rows, 512)
    expected = x.double() @ weight.dequantize(torch.float64).t()
    assert_relative(weight.matmul(x), expected, 1e-5)


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("num_rows", [1, 17, 70])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_product_is_right_to_the_type(kind: str, num_rows: int, dtype: torch.dtype) -> None:
    weight = make(kind)
    x = torch.randn(num_rows, 512).to(dtype)
    y = weight.matmul(x)
    assert y.dtype == dtype
    expected = x.double() @ weight.dequantize(torch.float64).t()
    assert_relative(y, expected, 1e-2)


@pytest.mark.parametrize("kind", [*QUANTISED, "dense"])
def test_leading_dimensions_are_kept(kind: str) -> None:
    weight = make(kind)
    x = torch.randn(2, 3, 512)
    y = weight.matmul(x)
    assert y.shape == (2, 3, 100)
    torch.testing.assert_close(y[1, 2], weight.matmul(x[1, 2]), rtol=1e-4, atol=1e-4)
    assert weight.matmul(x[:, :0]).shape == (2, 0, 100)


@pytest.mark.parametrize("kind", ["Q4_1", "int4", "int8"])
def test_strided_input_gives_the_same_product(kind: str) -> None:
    weight = make(kind)
    wide = torch.randn(4, 1024).bfloat16()
    x = wide[:, :512]
    torch.testing.assert_close(weight.matmul(x), weight.matmul(x.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [*QUANTISED, "dense"])
def test_gradient_of_the_input_is_that_of_the_dequantised_matrix(kind: str) -> None:
    weight = make(kind)
    x = torch.randn(5, 512, requires_grad=True)
    seed = torch.randn(5, 100)
    weight.matmul(x).backward(seed)
    assert x.grad is not None
    assert_relative(x.grad, seed.double() @ weight.dequantize(torch.float64), 1e-5)


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "int4", "int8"])
def test_gradient_agrees_with_finite_differences(kind: str) -> None:
    weight = make(kind, num_rows=5, width=256)

    def product(x: Tensor) -> Tensor:
        return weight.matmul(torch.cat((x, torch.zeros(2, 250, dtype=x.dtype)), dim=1))

    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(product, (x,))


@pytest.mark.parametrize("kind", ["Q4_1", "int4"])
def test_gradient_in_bf16_is_right_to_the_type(kind: str) -> None:
    weight = make(kind, num_rows=1500)  # several chunks
    x = torch.randn(40, 512).bfloat16().requires_grad_()
    seed = torch.randn(40, 1500).bfloat16()
    weight.matmul(x).backward(seed)
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert_relative(x.grad, seed.double() @ weight.dequantize(torch.float64), 1e-2)


@pytest.mark.parametrize("kind", ["Q4_1", "int4"])
def test_nothing_as_large_as_the_matrix_is_saved_for_the_backward_pass(kind: str) -> None:
    weight = make(kind, num_rows=1000)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, note):
        weight.matmul(torch.randn(2, 512, requires_grad=True))
    assert sum(saved) <= 2 * 512


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "int8"])
def test_products_of_many_chunks_are_put_together_in_order(kind: str) -> None:
    weight = make(kind, num_rows=1111)
    x = torch.randn(2, 512)
    assert len(list(row_chunks(weight.shape))) > 1
    assert_relative(weight.matmul(x), x.double() @ weight.dequantize(torch.float64).t(), 1e-5)


@settings(max_examples=50)
@given(num_rows=st.integers(1, 5000), width=st.integers(1, 20000))
def test_chunks_cover_every_row_once_and_start_between_tiles(num_rows: int, width: int) -> None:
    chunks = list(row_chunks((num_rows, width)))
    assert [row for start, stop in chunks for row in range(start, stop)] == list(range(num_rows))
    assert all(start % 64 == 0 for start, _ in chunks)
    assert all(stop - start <= max(64, 2**18 // width) for start, stop in chunks)


def test_dense_weight_is_a_plain_matrix() -> None:
    tensor = torch.randn(6, 32)
    weight = DenseWeight(tensor)
    x = torch.randn(3, 32)
    assert torch.equal(weight.matmul(x), torch.nn.functional.linear(x, tensor))
    assert torch.equal(weight.rows(torch.tensor([5, 1]), torch.float32), tensor[[5, 1]])
    assert (weight.kind, weight.shape, weight.size_bytes) == ("f32", (6, 32), 6 * 32 * 4)
    assert weight.dequantize(torch.float32).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("kind", ["dense", "Q5_K", "int4", "int8"])
def test_every_storage_keeps_the_protocol(kind: str) -> None:
    weight = make(kind)
    assert isinstance(weight, Weight)
    assert weight.device == torch.device("cpu")
    moved = weight.to(torch.device("cpu"))
    assert (moved.kind, moved.shape, moved.size_bytes) == (
        weight.kind,
        weight.shape,
        weight.size_bytes,
    )
    assert torch.equal(moved.dequantize(torch.float32), weight.dequantize(torch.float32))


def test_size_of_quantised_weights_is_that_of_their_format() -> None:
    assert make("Q4_1").size_bytes * 8 == 100 * 512 * 5
    for kind, bits in (("int4", 5), ("int8", 9)):
        weight = make(kind, num_rows=128)
        bits_here = 8.5 if isinstance(weight, PackedWeight) and kind == "int8" else bits
        assert weight.size_bytes * 8 == 128 * 512 * bits_here


def test_quantised_weights_agree_with_ggufs_own_product() -> None:
    values = np.random.default_rng(3).normal(size=(64, 256)).astype(np.float32)
    for kind in ("Q4_0", "Q8_0"):
        blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        plain = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
        x = torch.randn(2, 256)
        expected = torch.from_numpy(plain).double() @ x.double().t()
        y = BlockWeight(torch.from_numpy(blocks), kind).matmul(x)
        assert_relative(y, expected.t(), 1e-5)


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Errors relative to the size of the whole result; single sums may cancel."""
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.1e}"
