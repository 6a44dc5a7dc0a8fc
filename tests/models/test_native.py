"""What the native kernels compute for the parts of models equals torch in float64."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyprstream.models import native
from hyprstream.models.attention import PackedAttention, mixed_values
from hyprstream.models.config import AttentionConfig
from hyprstream.models.layers import RMSNorm, gated_activation
from hyprstream.models.quant import quantize
from hyprstream.models.rotary import rotate

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no kernels were compiled")

F32 = torch.float32
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SCALES = st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e15])


def random(shape: tuple[int, ...], seed: int, scale: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def assert_near(ours: Tensor | None, expected: Tensor, least: float = 1e-40) -> None:
    assert ours is not None
    tolerance = 1e-5 if ours.dtype == torch.float32 else 8e-3
    largest = float(expected.abs().max())
    error = float((ours.double() - expected).abs().max())
    assert error <= tolerance * largest + least


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 200),
    seed=st.integers(0, 999),
    scale=SCALES,
    dtype=DTYPES,
)
def test_norms(rows: int, width: int, seed: int, scale: float, dtype: torch.dtype) -> None:
    x = random((rows, width), seed, scale, dtype)
    weight = random((width,), seed + 1, 1.0, torch.float32)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    ours = native.rms_norm(x, weight, 1e-5)
    assert_near(ours, expected)
    assert ours is not None
    for i in range(rows):
        alone = native.rms_norm(x[i : i + 1], weight, 1e-5)
        assert alone is not None
        assert torch.equal(alone[0], ours[i])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 33)),
    still=st.integers(0, 9),
    seed=st.integers(0, 999),
    dtype=DTYPES,
)
def test_rotations(shape: tuple[int, int, int], still: int, seed: int, dtype: torch.dtype) -> None:
    rows, heads, half = shape
    x = random((rows, heads, 2 * half + still), seed, 1.0, dtype)
    phase = random((rows, 1, half), seed + 1, 3.0, torch.float32)
    cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)
    tables = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    first, second = x[..., :half].double(), x[..., half : 2 * half].double()
    c, s = cos.double(), sin.double()
    expected = torch.cat(
        (first * c - second * s, second * c + first * s, x[..., 2 * half :].double()), -1
    )
    assert_near(native.rotate(x, *tables), expected)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 100)),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-20, 0.1, 3.0, 80.0, 1e4, 1e30]),
    dtype=DTYPES,
)
def test_gates(shape: tuple[int, int], seed: int, scale: float, dtype: torch.dtype) -> None:
    x, up = random(shape, seed, scale, dtype), random(shape, seed + 1, 1.0, dtype)
    assert_near(native.silu_gate(x, up), torch.nn.functional.silu(x.double()) * up.double(), 1e-30)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 200),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    dtype=DTYPES,
)
def test_gradients_of_norms(
    rows: int, width: int, seed: int, scale: float, dtype: torch.dtype
) -> None:
    x, weight = random((rows, width), seed, scale, dtype), random((width,), seed, 1.0, F32)
    grad = random((rows, width), seed + 1, 1.0, dtype)
    wide = x.double().requires_grad_()
    y = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    (expected,) = torch.autograd.grad(y, wide, grad.double())
    # What is added up may cancel: the error is of the size of the terms.
    terms = float((grad.double() * weight).abs().max() / (x.double().square().mean() + 1e-5).sqrt())
    assert_near(native.rms_norm_gradient(x, weight, 1e-5, grad), expected, 1e-4 * terms)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 100)),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-20, 0.1, 3.0, 80.0, 1e4]),
    dtype=DTYPES,
)
def test_gradients_of_gates(
    shape: tuple[int, int], seed: int, scale: float, dtype: torch.dtype
) -> None:
    x, up = random(shape, seed, scale, dtype), random(shape, seed + 1, 1.0, dtype)
    grad = random(shape, seed + 2, 1.0, F32)
    leaves = [each.double().requires_grad_() for each in (x, up)]
    y = torch.nn.functional.silu(leaves[0]) * leaves[1]
    expected = torch.autograd.grad(y, leaves, grad.double())
    found = native.silu_gate_gradient(x, up, grad)
    assert found is not None
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs, 1e-30)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 300)),
    seed=st.integers(0, 999),
    scale=st.sampled_from([0.1, 3.0, 80.0, 1e4]),
    dtype=DTYPES,
)
def test_cross_entropies(
    shape: tuple[int, int], seed: int, scale: float, dtype: torch.dtype
) -> None:
    logits = random(shape, seed, scale, dtype)
    targets = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))
    factors = random(shape[:1], seed + 1, 1.0, F32)
    wide = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected, wide, factors.double())
    losses = native.cross_entropy(logits, targets, factors)
    assert losses is not None
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert_near(logits, gradient, 1e-6)  # in the place of the logits


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, native.MAX_QUERIES),
    before=st.integers(0, 40),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    window=st.sampled_from([None, 1, 5, 100]),
    softcap=st.sampled_from([None, 20.0]),
    seed=st.integers(0, 999),
    dtype=DTYPES,
)
def test_attention(
    queries: int,
    before: int,
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    seed: int,
    dtype: torch.dtype,
) -> None:
    config = AttentionConfig(scale=0.3, window=window, softcap=softcap)
    q = random((queries, heads[0], 16), seed, 1.0, dtype)
    k = random((before + queries, heads[1], 16), seed + 1, 1.0, dtype)
    v = random((before + queries, heads[1], 16), seed + 2, 1.0, dtype)
    expected = mixed_values(config, q.double(), k.double(), v.double(), num_before=before)
    assert_near(native.attend(config, q, k, v, before), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_seen(value: float) -> None:
    x = torch.ones(3, 8)
    x[1, 5] = value
    gradients = native.silu_gate_gradient(x, torch.ones(3, 8), torch.ones(3, 8))
    logits = x.clone()
    losses = native.cross_entropy(logits, torch.zeros(3, dtype=torch.int64), torch.ones(3))
    assert losses is not None
    assert losses.isfinite().tolist() == [True, False, True]
    assert gradients is not None
    for y in (
        logits,
        gradients[1],
        native.rms_norm_gradient(x, torch.ones(8), 1e-5, torch.ones(3, 8)),
        native.rms_norm_gradient(torch.ones(3, 8), torch.ones(8), 1e-5, x),
        native.rms_norm(x, torch.ones(8), 1e-5),
        native.silu_gate(x, torch.ones(3, 8)),
        native.silu_gate(torch.ones(3, 8), x),
    ):
        assert y is not None
        assert y[[0, 2]].isfinite().all()
        assert not y[1].isfinite().all()


def test_gradients_are_left_to_torch() -> None:
    x = torch.randn(2, 4, 8, requires_grad=True)
    flat = x.flatten(1)
    assert native.rms_norm(x, torch.ones(8), 1e-5) is None
    assert native.rotate(x, torch.ones(2, 1, 8), torch.zeros(2, 1, 8)) is None
    assert native.silu_gate(flat, flat) is None
    parts = (
        RMSNorm(torch.rand(8), 1e-5)(x),
        rotate(x, torch.rand(2, 1, 8), torch.rand(2, 1, 8)),
        gated_activation("silu")(flat, flat),
        PackedAttention([AttentionConfig(scale=1.0)], [2]).attend(0, x, x, x),
    )
    for y in parts:
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.isfinite().all()
    with torch.no_grad():
        assert native.rms_norm(x, torch.ones(8), 1e-5) is not None


def test_a_fork_computes_with_threads_of_its_own() -> None:
    weight = quantize(random((512, 512), 1, 0.1, torch.float32), "int4")
    x = random((64, 512), 2, 1.0, torch.bfloat16)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = weight.matmul(x)
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            is_equal = torch.equal(weight.matmul(x), expected)
            os._exit(0 if is_equal else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)
