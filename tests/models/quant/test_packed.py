"""Packed weights: what the native kernels compute, against float64 and against themselves."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyprstream.models import native
from hyprstream.models.quant import PackedWeight, multiply_all, packed, peaks
from hyprstream.models.quant.groups import Groups
from hyprstream.models.quant.packed import Form

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no kernels were compiled")

FORMS = [
    Form(bits=bits, group=group, zero=zero)
    for bits in (4, 8)
    for group in (16, 32)
    for zero in (None, 0, 8, 128 if bits == 8 else 15)
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[PackedWeight, Tensor, Tensor]:
    """A weight, the same as float64, and rows to multiply with."""
    form = draw(st.sampled_from(FORMS))
    seed = draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_groups = draw(st.integers(1, 70)), draw(st.integers(1, 5))
    num_inputs = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 19]))
    size = 10.0 ** draw(st.integers(-30, 20))
    first = -(form.zero or 0)
    last = min(first + 2**form.bits, 128)  # codes are handed over as int8
    shape = (num_rows, num_groups, form.group)
    codes = torch.randint(first, last, shape, generator=generator)
    if draw(st.booleans()):
        codes[:, 0] = first  # a group without differences
    scale = _halves(torch.randn(shape[:2], generator=generator), size)
    values = codes.double() * scale.double()[..., None]
    offset = None
    if form.zero is None:
        offset = _halves(torch.randn(shape[:2], generator=generator), size)
        values += offset.double()[..., None]

    def encode(start: int, stop: int) -> Groups:
        part = slice(start, stop)
        return Groups(
            codes=codes[part].to(torch.int8),
            scale=scale[part],
            offset=None if offset is None else offset[part],
        )

    weight = packed.pack((num_rows, num_groups * form.group), form, "test", encode)
    x = torch.randn(num_inputs, num_groups * form.group, generator=generator)
    x *= 10.0 ** draw(st.integers(-6, 6))
    if draw(st.booleans()):
        x[:, : form.group] = 0.0
    if draw(st.booleans()):
        x[:, ::5] *= 1000.0
    return weight, values.flatten(1), x.bfloat16()


def _halves(values: Tensor, size: float) -> Tensor:
    """Numbers that scales may be, exactly: halves times a power of two."""
    factor = packed.factor_for(8 * size)
    return (values * size / factor).to(torch.float16).float() * factor


def rounded(x: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as the kernels see them, in float64; the step of each number, where it is a tie."""
    grouped = x.double().unflatten(1, (-1, group))
    most = grouped.abs().amax(2, keepdim=True).float()
    step = (most / 127).double()
    inverse = torch.where(most > 2.0**-120, 127 / most, 0.0).double()
    exact = grouped * inverse
    ties = ((exact - exact.floor() - 0.5).abs() < 1e-5) * step
    return (exact.round() * step).flatten(1), step.expand_as(grouped).flatten(1), ties.flatten(1)


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_products_are_those_of_rounded_rows_to_float32(
    case: tuple[PackedWeight, Tensor, Tensor],
) -> None:
    weight, values, x = case
    near, step, ties = rounded(x, weight._form.group)
    y = weight.direct(x)
    assert y is not None
    terms = near.abs() @ values.abs().t()
    either_way = ties @ values.abs().t()
    error = (y.double() - near @ values.t()).abs()
    assert (error <= 1e-2 * (near @ values.t()).abs() + 1e-5 * terms + either_way + 1e-40).all()
    # And of the rows themselves: half a step for each number.
    exact = x.double() @ values.t()
    bound = (0.505 * step) @ values.abs().t()
    assert ((y.double() - exact).abs() <= bound + 1e-2 * exact.abs() + 1e-5 * terms + 1e-40).all()


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_any_instructions_and_threads_give_the_same_bits(
    case: tuple[PackedWeight, Tensor, Tensor],
) -> None:
    weight, _, x = case
    kernels = native.kernels()
    assert kernels is not None
    for rows in (x, x.float()):
        results = []
        for threads, instructions in product((1, 3), kernels.available):
            y = rows.new_empty(len(rows), weight.shape[0])
            kind = native.kind_of(rows)
            ends = [weight.address, y.data_ptr(), None, None, None, None]
            how = kind, rows.data_ptr(), len(rows), threads, instructions
            kernels.packed_products(*how, *ends)
            results.append(y)
        assert all(torch.equal(results[0], other) for other in results[1:])


@settings(max_examples=60, deadline=None)
@given(case=cases(), other=cases())
def test_a_row_does_not_depend_on_others_nor_on_other_weights(
    case: tuple[PackedWeight, Tensor, Tensor], other: tuple[PackedWeight, Tensor, Tensor]
) -> None:
    weight, _, x = case
    y = weight.direct(x)
    assert y is not None
    for i in range(len(x)):
        assert torch.equal(weight.matmul(x[i : i + 1]), y[i : i + 1])
    if other[0].shape[1] == weight.shape[1]:
        together = multiply_all([other[0], weight, other[0]], x)
        assert together is not None
        assert torch.equal(together[1], y)
        assert torch.equal(together[0], together[2])


@settings(max_examples=60, deadline=None)
@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_weights_are_unpacked_to_what_they_stand_for(
    case: tuple[PackedWeight, Tensor, Tensor], dtype: torch.dtype
) -> None:
    weight, values, _ = case
    tolerance = 4e-3 if dtype == torch.bfloat16 else 1e-6
    largest = values.abs().max()
    whole = weight.dequantize(dtype).double()
    assert ((whole - values).abs() <= tolerance * largest + 1e-40).all()
    ids = torch.arange(weight.shape[0]).flip(0)
    chosen = weight.rows(ids, dtype).double()
    assert ((chosen - values[ids]).abs() <= tolerance * largest + 1e-40).all()
    if weight.shape[0] > 64:
        part = weight.span(64, weight.shape[0])
        assert torch.equal(part.dequantize(dtype).double(), whole[64:])


def test_what_is_no_number_stays_in_its_row() -> None:
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(-8, 8, (40, 2, 32), generator=generator).to(torch.int8)
    groups = Groups(codes=codes, scale=torch.full((40, 2), 0.01))
    form = Form(bits=4, group=32, zero=8)
    weight = packed.pack((40, 64), form, "test", lambda start, stop: Groups(
        codes=groups.codes[start:stop], scale=groups.scale[start:stop]
    ))  # fmt: skip
    x = torch.randn(6, 64, generator=generator).bfloat16()
    x[1, 40], x[3, 0], x[4, 63] = float("nan"), float("inf"), float("-inf")
    y = weight.matmul(x)
    assert y[[0, 2, 5]].isfinite().all()
    assert not y[[1, 3, 4]].isfinite().any()


def test_a_gradient_is_that_of_the_weights_and_not_of_rounded_rows() -> None:
    generator = torch.Generator().manual_seed(6)
    codes = torch.randint(0, 16, (48, 2, 32), generator=generator).to(torch.int8)
    scale = torch.rand(48, 2, generator=generator) * 0.01
    offset = torch.rand(48, 2, generator=generator) * -0.05

    def encode(start: int, stop: int) -> Groups:
        part = slice(start, stop)
        return Groups(codes=codes[part], scale=scale[part], offset=offset[part])

    weight = packed.pack((48, 64), Form(bits=4, group=32, zero=None), "test", encode)
    matrix = weight.dequantize(torch.float32)
    x = torch.randn(20, 64, generator=generator, requires_grad=True)
    y = weight.matmul(x)
    torch.testing.assert_close(y, x @ matrix.t(), rtol=1e-5, atol=1e-6)
    upstream = torch.randn(y.shape, generator=generator)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient, upstream @ matrix, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_peaks_are_those_of_the_products(case: tuple[PackedWeight, Tensor, Tensor]) -> None:
    weight, _, x = case
    y = weight.direct(x)
    assert y is not None
    assert peaks(weight, x) == first_peaks(y)


@pytest.mark.parametrize("num_outputs", [512, 513, 1555])
def test_peaks_of_many_outputs_are_the_first_whoever_finds_them(num_outputs: int) -> None:
    generator = torch.Generator().manual_seed(num_outputs)
    half = torch.randint(-8, 8, (num_outputs // 2, 2, 32), generator=generator)
    codes = torch.cat((half, half, half))[:num_outputs].to(torch.int8)  # each peak is there twice
    form = Form(bits=4, group=32, zero=8)
    weight = packed.pack((num_outputs, 64), form, "test", lambda start, stop: Groups(
        codes=codes[start:stop], scale=torch.full((stop - start, 2), 0.01)
    ))  # fmt: skip
    x = torch.randn(9, 64, generator=generator).bfloat16()
    x[3] = 0.0
    x[5, 7] = float("nan")
    kernels = native.kernels()
    assert kernels is not None
    for rows in (x, x.float()):
        kind, y = native.kind_of(rows), rows.new_empty(9, num_outputs)
        ends = [weight.address, y.data_ptr(), None, None, None, None]
        kernels.packed_products(kind, rows.data_ptr(), 9, 1, 0, *ends)
        for threads, level in product((1, 2, 3), kernels.available):
            values, places = torch.empty(9), torch.empty(9, dtype=torch.long)
            found = values.data_ptr(), places.data_ptr()
            how = kind, rows.data_ptr(), 9, threads, level
            kernels.packed_peaks(*how, weight.address, *found)
            best = y.max(dim=1)
            assert torch.equal(places, best.indices)
            assert torch.equal(values.nan_to_num(), best.values.float().nan_to_num())
            assert values[5].isnan()


def test_there_are_no_peaks_where_the_kernel_does_not_multiply() -> None:
    codes = torch.ones(16, 1, 32, dtype=torch.int8)
    weight = packed.pack((16, 32), FORMS[0], "test", lambda start, stop: Groups(
        codes=codes[start:stop, :, :16].reshape(-1, 1, 16).repeat(1, 2, 1),
        scale=torch.ones(stop - start, 2),
        offset=torch.zeros(stop - start, 2),
    ))  # fmt: skip
    assert peaks(weight, torch.ones(1, 32)) is None
    assert peaks(weight, torch.ones(1, 32).bfloat16()) == [(32.0, 0)]


def first_peaks(y: Tensor) -> list[tuple[float, int]]:
    best = y.max(dim=1)
    return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))
