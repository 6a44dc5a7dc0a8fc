"""Dense weights in the native kernels: against float64, and against other instructions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyprstream.errors import InvalidSettingsError
from hyprstream.kernels.native import DenseMatrix, Instructions, open_kernels
from hyprstream.models import native
from hyprstream.models.quant import DenseWeight, multiply_all, products, together
from hyprstream.models.quant.together import NativeWeight

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no kernels were compiled")

# Sixteen sums of a sixteenth of the terms each, then four additions.
_EPSILON = torch.finfo(torch.float32).eps
_LEAST = 2.0**-149  # of float32


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Weights in bfloat16 (O, I), which need not begin where memory is aligned, and rows."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    num_outputs = draw(st.sampled_from([1, 5, 6, 23, 24, 25, 48, 67]))
    num_inputs = draw(st.sampled_from([1, 2, 31, 32, 33, 64, 95, 160, 300]))
    num_rows = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 19]))
    offset = draw(st.integers(0, 40))
    size = 10.0 ** draw(st.sampled_from([-39, -20, 0, 15]))
    flat = torch.randn(offset + num_outputs * num_inputs, generator=generator) * size
    w = flat.bfloat16()[offset:].view(num_outputs, num_inputs)
    x = torch.randn(num_rows, num_inputs, generator=generator)
    x *= 10.0 ** draw(st.sampled_from([-38, -10, 0, 10]))
    if draw(st.booleans()):
        x[:, ::7] *= 1000.0
    return w, x.bfloat16()


def product(w: Tensor, x: Tensor, instructions: Instructions, threads: int = 1) -> Tensor:
    """What the kernel makes of `w` and `x`, in the dtype of `x`."""
    kernels, kind = native.kernels(), native.kind_of(x)
    assert kernels is not None
    assert kind is not None
    held = NativeWeight(DenseMatrix(w.data_ptr(), *w.shape), w.data_ptr())
    y = torch.full((x.shape[0] + 1, w.shape[0]), 7.0, dtype=x.dtype)
    ends = [held.address, y.data_ptr(), None, None, None, None]
    kernels.dense_products(kind, x.data_ptr(), x.shape[0], threads, instructions, *ends)
    assert (y[-1] == 7.0).all()  # nothing behind the results was written
    return y[:-1]


def available() -> tuple[Instructions, ...]:
    kernels = native.kernels()
    assert kernels is not None
    return kernels.available


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_products_are_those_of_float64(case: tuple[Tensor, Tensor]) -> None:
    w, x = case
    expected = x.double() @ w.double().t()
    terms = x.double().abs() @ w.double().abs().t()
    bound = (w.shape[1] / 8 + 8) * (_EPSILON * terms + _LEAST)
    wide = product(w, x.float(), max(available())).double()
    assert ((wide - expected).abs() <= bound).all()
    narrow = product(w, x, max(available())).double()
    assert ((narrow - expected).abs() <= bound + 2.0**-8 * expected.abs() + 2.0**-133).all()


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_any_instructions_and_threads_give_the_same_bits(case: tuple[Tensor, Tensor]) -> None:
    w, x = case
    for rows in (x, x.float()):
        expected = product(w, rows, Instructions.PLAIN)
        for instructions in available():
            assert torch.equal(product(w, rows, instructions), expected)
            assert torch.equal(product(w, rows, instructions, threads=3), expected)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_a_row_depends_on_nothing_but_itself(case: tuple[Tensor, Tensor]) -> None:
    w, x = case
    weight = DenseWeight(w)
    for instructions in available():
        y = product(w, x, instructions)
        for i in range(len(x)):
            assert torch.equal(product(w, x[i : i + 1], instructions), y[i : i + 1])
    together = multiply_all([DenseWeight(w[:1]), weight, weight], x)
    if together is not None:
        assert torch.equal(together[1], product(w, x, max(available())))
        assert torch.equal(together[1], together[2])
        assert torch.equal(together[0], together[1][:, :1])


def test_work_is_divided_without_a_difference() -> None:
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(1100, 1000, generator=generator).bfloat16()  # several pieces of work
    x = torch.randn(9, 1000, generator=generator).bfloat16()
    expected = product(w, x, Instructions.PLAIN)
    for instructions in available():
        for threads in (1, 2, 4):
            assert torch.equal(product(w, x, instructions, threads), expected)


def test_what_is_no_number_stays_in_its_row_and_output() -> None:
    generator = torch.Generator().manual_seed(4)
    w = torch.randn(40, 70, generator=generator).bfloat16()
    x = torch.randn(6, 70, generator=generator).bfloat16()
    w[7, 69], x[1, 3], x[4, 69] = float("inf"), float("nan"), float("-inf")
    for instructions in available():
        y = product(w, x, instructions)
        assert y[[0, 2, 3, 5]][:, [i for i in range(40) if i != 7]].isfinite().all()
        assert not y[:, 7].isfinite().any()
        assert not y[[1, 4]].isfinite().any()


def test_no_rows_and_parts_of_a_weight() -> None:
    weight = DenseWeight(
        torch.randn(200, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    )
    assert weight.matmul(torch.empty(0, 48).bfloat16()).shape == (0, 200)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(2)).bfloat16()[:, ::2]
    assert torch.equal(weight.span(64, 150).matmul(x), weight.matmul(x)[:, 64:150])


def test_a_gradient_is_taken_by_torch() -> None:
    weight = DenseWeight(torch.randn(20, 30, generator=torch.Generator().manual_seed(1)).bfloat16())
    x = torch.randn(3, 30).bfloat16().requires_grad_()
    assert multiply_all([weight], x) is None
    y = weight.matmul(x)
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    torch.testing.assert_close(
        gradient[0].float(), weight.tensor.float().sum(0), rtol=2e-2, atol=2e-2
    )


def test_weights_that_the_kernel_cannot_read_are_left_to_torch() -> None:
    x = torch.randn(2, 40).bfloat16()
    for tensor in (torch.randn(40, 30).bfloat16().t(), torch.randn(30, 40)):
        assert multiply_all([DenseWeight(tensor)], x) is None
    w = torch.randn(40, 30).bfloat16().t()
    torch.testing.assert_close(DenseWeight(w).matmul(x), x @ w.t(), rtol=2e-2, atol=1e-1)


@pytest.mark.parametrize(
    ("is_fast", "has_amx", "most"), [(False, False, 64), (True, False, 16), (True, True, 4)]
)
def test_up_to_how_many_rows_the_kernel_is_faster_depends_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, is_fast: bool, has_amx: bool, most: int
) -> None:
    monkeypatch.setattr(products, "bfloat16_is_fast", lambda: is_fast)
    monkeypatch.setattr(products, "has_amx", lambda: has_amx)
    limit = together.max_dense_rows.__wrapped__
    kernels = native.kernels()
    assert kernels is not None
    assert limit() == (most if kernels.packed_is_fast else 0)
    monkeypatch.setattr(together, "max_dense_rows", limit)
    weight, x = DenseWeight(torch.randn(8, 32).bfloat16()), torch.randn(65, 32).bfloat16()
    assert multiply_all([weight], x[: most + 1]) is None
    assert (multiply_all([weight], x[:most]) is not None) == kernels.packed_is_fast


def test_the_environment_narrows_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for instructions in Instructions:
        monkeypatch.setenv("HYPRSTREAM_INSTRUCTIONS", instructions.name.lower())
        kernels = open_kernels()
        assert kernels is not None
        narrower = [each for each in kernels.available if each <= instructions]
        assert kernels.instructions == narrower[-1]  # never what the processor does not have
    monkeypatch.setenv("HYPRSTREAM_INSTRUCTIONS", "mmx")
    with pytest.raises(InvalidSettingsError, match="mmx"):
        open_kernels()
