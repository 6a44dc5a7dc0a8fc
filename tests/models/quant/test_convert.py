"""Quantising tensors, and repacking blocks for the CPU's 4-bit kernel."""

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
    Quantization,
    TiledWeight,
    Weight,
    for_compute,
    packed,
    quantize,
)
from hyprstream.models.quant import tiles as tiles_module
from tests.models.quant.test_products import assert_relative, block_weight, dense

needs_kernel = pytest.mark.skipif(
    not tiles_module.kernel_is_available(), reason="this CPU has no 4-bit kernel in torch"
)
REPACKED = ["Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q8_0"]
STORAGES = [
    pytest.param(
        PackedWeight,
        marks=pytest.mark.skipif(
            not packed.is_fast(), reason="no native kernels, or no instructions for them"
        ),
    ),
    TiledWeight,
]


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """The class of quantised weights: that of the native kernels, or that of torch's."""
    monkeypatch.setattr(packed, "is_fast", lambda: request.param is PackedWeight)
    kind: type = request.param
    return kind


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Matrices of any scale, with offsets, outliers, zeros and constant groups."""
    num_rows, groups = draw(st.integers(1, 70)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    w = torch.randn(num_rows, groups * 32, generator=generator)
    w = w * 10.0 ** draw(st.integers(-12, 12)) * draw(st.sampled_from([0.0, 1.0, 1.0, 1.0]))
    w = w + draw(st.sampled_from([0.0, 0.0, 1.0, -1000.3]))
    if draw(st.booleans()):
        w[:, ::7] *= 1000.0
    if draw(st.booleans()):
        w[:, :32] = w[:, :1]
    return w


def steps(weight: Weight, shape: torch.Size) -> Tensor:
    """The scale of every weight."""
    if isinstance(weight, PackedWeight):
        code_bytes = weight._form.code_bytes
        halves = weight._tiles[..., code_bytes : code_bytes + 32].view(torch.float16)
        scales = halves.float().transpose(1, 2).flatten(0, 1)[: shape[0]]
        return (scales * weight._factor).repeat_interleave(32, dim=1)
    assert isinstance(weight, TiledWeight)
    scales = weight._scales[:, : shape[0], 0].float().t()
    return scales.repeat_interleave(32, dim=1)


@pytest.mark.parametrize("kind", STORAGES)
@settings(max_examples=60, deadline=None)
@given(w=matrices(), to=st.sampled_from(["int4", "int8"]))
def test_quantising_errs_by_at_most_half_a_step(kind: type, w: Tensor, to: Quantization) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "is_fast", lambda: kind is PackedWeight)
        weight = quantize(w, to)
    assert isinstance(weight, kind)
    error = (weight.dequantize(torch.float32) - w).abs()
    bound = steps(weight, w.shape) / 2
    # float32 arithmetic on numbers of the size of the weights
    assert (error <= bound * (1 + 1e-4) + w.abs() * 1e-5).all()


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(("to", "most"), [("int4", 0.08), ("int8", 0.006)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantising_gaussian_weights_errs_as_its_bits_allow(
    to: Quantization, most: float, dtype: torch.dtype
) -> None:
    w = dense("w", 200, 512).to(dtype)
    weight = quantize(w, to)
    assert weight.kind == to
    error = (weight.dequantize(torch.float32) - w.float()).norm() / w.float().norm()
    assert error < most


@pytest.mark.usefixtures("storage")
def test_a_step_does_not_depend_on_other_groups() -> None:
    w = dense("w", 64, 64)
    changed = w.clone()
    changed[:, 32:] *= 100
    for to in ("int4", "int8"):
        first, second = quantize(w, to), quantize(changed, to)
        assert torch.equal(
            first.dequantize(torch.float32)[:, :32], second.dequantize(torch.float32)[:, :32]
        )


@pytest.mark.usefixtures("storage")
def test_zero_stays_zero() -> None:
    for to in ("int4", "int8"):
        weight = quantize(torch.zeros(3, 32), to)
        assert torch.equal(weight.dequantize(torch.float32), torch.zeros(3, 32))


@pytest.mark.usefixtures("storage")
def test_rows_that_are_not_a_multiple_of_32_stay_dense() -> None:
    w = torch.randn(8, 172)
    weight = quantize(w, "int4")
    assert isinstance(weight, DenseWeight)
    assert weight.kind == "f32"


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("to", ["int4", "int8"])
def test_rows_are_those_of_the_dequantised_matrix(to: Quantization) -> None:
    weight = quantize(dense("w", 150, 96), to)
    ids = torch.tensor([149, 0, 31, 32, 63, 64, 127, 128, 0])
    whole = weight.dequantize(torch.float32)
    assert torch.equal(weight.rows(ids, torch.float32), whole[ids])


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize("to", ["int4", "int8"])
@pytest.mark.parametrize("num_rows", [1, 3, 16, 32, 64, 65])
def test_kernel_and_unpacked_product_agree(to: Quantization, num_rows: int) -> None:
    weight = quantize(dense("w", 130, 256), to)
    x = torch.randn(num_rows, 256).bfloat16()
    assert_relative(weight.matmul(x), x.double() @ weight.dequantize(torch.float64).t(), 1e-2)


@pytest.mark.parametrize("tile", [32, 64, None])
def test_any_tile_of_the_kernel_gives_the_same_weights(
    tile: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "is_fast", lambda: False)
    w = dense("w", 100, 128)
    here = quantize(w, "int8")
    monkeypatch.setattr(tiles_module, "_kernel_tile", lambda: tile)
    there = quantize(w, "int8")
    assert torch.equal(there.dequantize(torch.float32), here.dequantize(torch.float32))
    ids = torch.tensor([99, 31, 32, 65])
    assert torch.equal(there.rows(ids, torch.float32), here.rows(ids, torch.float32))
    monkeypatch.undo()
    x = torch.randn(2, 128).bfloat16()  # a tile of another kernel is unpacked, not misread
    torch.testing.assert_close(there.matmul(x), here.matmul(x), rtol=2e-2, atol=2e-2)


@needs_kernel
@pytest.mark.parametrize("kind", REPACKED)
def test_blocks_are_repacked_for_bf16_without_loss_beyond_bf16(storage: type, kind: str) -> None:
    blocks = block_weight(kind, 100, 512)
    weight = for_compute(blocks, torch.bfloat16)
    assert isinstance(weight, storage)
    assert weight.kind == kind
    exact = blocks.dequantize(torch.float32)
    error = (weight.dequantize(torch.float32) - exact).norm() / exact.norm()
    # bf16 itself loses about 1.7e-3; Q6_K is rounded to 8 bits.
    assert error < (6e-3 if kind == "Q6_K" else 2.5e-3)


@needs_kernel
@pytest.mark.parametrize("kind", [*REPACKED, "Q5_0", "Q5_1", "Q5_K"])
def test_repacked_product_is_right_to_bf16(storage: type, kind: str) -> None:
    blocks = block_weight(kind, 100, 512)
    weight = for_compute(blocks, torch.bfloat16)
    assert isinstance(weight, storage)
    for num_rows in (1, 70):
        x = torch.randn(num_rows, 512).bfloat16()
        expected = x.double() @ blocks.dequantize(torch.float64).t()
        assert_relative(weight.matmul(x), expected, 2e-2)


@needs_kernel
@pytest.mark.parametrize("kind", FORMATS)
def test_repacking_grows_a_weight_by_no_more_than_documented(storage: type, kind: str) -> None:
    blocks = block_weight(kind, 128, 512)
    most = 1.06 if kind in {"Q4_1", "Q8_0"} else 1.65  # those two make up the default model
    if storage is PackedWeight and kind in {"Q2_K", "IQ4_NL", "IQ4_XS"}:
        most = 2.3  # of 2 bits, or by a codebook
    assert for_compute(blocks, torch.bfloat16).size_bytes <= most * blocks.size_bytes


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_keep_blocks_and_exactness(kind: str, dtype: torch.dtype) -> None:
    blocks = block_weight(kind, 8, 512)
    assert for_compute(blocks, dtype) is blocks


def test_without_a_kernel_blocks_stay_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "is_fast", lambda: False)
    monkeypatch.setattr(tiles_module, "_kernel_tile", lambda: None)
    blocks = block_weight("Q4_0", 8, 512)
    assert for_compute(blocks, torch.bfloat16) is blocks


def test_dense_weights_take_the_dtype_of_activations() -> None:
    tensor = torch.randn(4, 32)
    same = for_compute(DenseWeight(tensor), torch.float32)
    assert isinstance(same, DenseWeight)
    assert same.tensor.data_ptr() == tensor.data_ptr()
    assert for_compute(DenseWeight(tensor), torch.bfloat16).kind == "bf16"


@pytest.mark.usefixtures("storage")
def test_damaged_scales_give_nan_not_crashes() -> None:
    blocks = block_weight("Q4_0", 64, 64)
    broken = blocks.blocks.clone()
    broken[3, :2] = torch.tensor([0x00, 0x7E], dtype=torch.uint8)  # a NaN
    weight = for_compute(BlockWeight(broken, "Q4_0"), torch.bfloat16)
    y = weight.matmul(torch.ones(1, 64).bfloat16())
    assert y.isnan().nonzero().tolist() == [[0, 3]]
