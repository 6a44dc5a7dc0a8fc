"""Adapters in units of the learned code: what is multiplied is what a stream holds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.train.rounded import RoundedLayer, RoundedLora, grain_of
from hyprstream.vdb.learned.source import PairSource, singular
from tests.lora.adapters import CPU


def part(rank: int, *, seed: int = 0, size: float = 1.0) -> PairSource:
    rng = np.random.default_rng(seed)
    sizes, u, v = singular(size * rng.standard_normal((12, rank)), rng.standard_normal((rank, 20)))
    return PairSource(rank=rank, sizes=sizes, u=u, v=v, p_mask=None, q_mask=None)


def shifted(layer: RoundedLayer, moves: torch.Tensor) -> RoundedLayer:
    with torch.no_grad():
        layer.shift.copy_(moves)
    return layer


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.floats(0.02, 3.0), st.floats(1e-3, 1e3), st.floats(-4, 4))
def test_what_a_layer_adds_is_what_its_pair_holds(rank, coarseness, size, move):
    source = part(rank, size=size)
    step = coarseness * float(source.sizes.mean()) / 4
    grain = grain_of({"x": source}, step)
    layer = shifted(RoundedLayer(source, step, grain, CPU), move * torch.linspace(-1, 1, rank))
    pair = layer.pair(rank)
    assert not (pair.codes % grain).any()
    tensors = pair.tensors("x/low_rank")
    a, b = (torch.from_numpy(tensors[f"x/low_rank/{side}"].to_dense()) for side in "ab")
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer.product(x), x @ a @ b, rtol=1e-5, atol=1e-5 * size)


def test_gradients_are_those_of_the_product_of_rounded_factors_and_scales():
    layer = shifted(RoundedLayer(part(3), 0.7, 8, CPU), torch.tensor([0.0, 0.3, -0.3]))
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(5, 20, generator=torch.Generator().manual_seed(2))
    (layer.product(x) * weights).sum().backward()

    pair = layer.pair(3)
    p, q = (torch.from_numpy(side).double().requires_grad_() for side in (pair.p, pair.q))
    octaves = torch.from_numpy(pair.codes / 1024).requires_grad_()
    squares = torch.exp2(2 * octaves)[:, None]
    ((x.double() @ p.T) @ (squares * q) * weights).sum().backward()
    pairs = ((layer.p, p, 1.0), (layer.q, q, 1.0), (layer.shift, octaves, 0.4))
    for ours, theirs, factor in pairs:
        assert ours.grad is not None
        assert theirs.grad is not None
        expected = factor * theirs.grad
        torch.testing.assert_close(ours.grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_rate_is_that_of_normal_numbers():
    layer = RoundedLayer(part(4), 0.1, 8, CPU)
    expected = 0.0
    for side in (layer.p, layer.q):
        variances = side.detach().double().square().mean(1)
        expected += float((side.shape[1] / 2 * torch.log2(1 + 2 * np.pi * np.e * variances)).sum())
    assert layer.bits().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("step", "grain"), [(1e-9, 1), (1e9, 64)])
def test_scales_are_as_fine_as_values_are(step, grain):
    source = {"x": part(3)}
    assert grain_of(source, step) == grain
    assert grain_of(source, 0.2) < grain_of(source, 2.0)
    assert RoundedLora(source, 2.0, CPU).step_code % grain_of(source, 2.0) == 0


def test_a_layer_that_is_not_there_adds_nothing():
    view = RoundedLora({"known": part(2)}, 0.1, CPU)
    assert view.delta("unknown", torch.ones(1, 12)) is None
    assert view.delta("known", torch.ones(1, 12)) is not None
    assert set(view.parameters()) == {"known/p", "known/q", "known/scale"}
