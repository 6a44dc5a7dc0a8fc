"""Products with adapters in one step of autograd have the gradients of the plain formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyprstream.models.forward import Factors
from hyprstream.models.quant import DenseWeight, Weight, differentiable, quantize
from hyprstream.models.quant import products as products_module
from hyprstream.models.row_steps import Gated


def leaf(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """Make weights of a few rows come in several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products_module, "_CHUNK_WEIGHTS", 64 * 12)
        patch.setattr(products_module, "_MAX_CHUNK_WEIGHTS", 64 * 12)
        yield


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 80),
    width=st.integers(1, 20),
    outputs=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    with_factors=st.lists(st.booleans(), min_size=3, max_size=3),
    gated=st.booleans(),
    wants_rows=st.booleans(),
    seed=st.integers(0, 999),
)
def test_gradients_are_those_of_the_formula(
    rows: int,
    width: int,
    outputs: list[int],
    with_factors: list[bool],
    gated: bool,
    wants_rows: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sources = [leaf(generator, rows, width) for _ in range(2 if gated else 1)]
    weights = [leaf(generator, size, width).detach() for size in outputs]
    factors = [
        Factors(leaf(generator, width, 3), leaf(generator, 3, size), 0.5 + i) if chosen else None
        for i, (size, chosen) in enumerate(zip(outputs, with_factors, strict=False))
    ]
    leaves = [each for pair in factors if pair is not None for each in (pair.a, pair.b)]
    if wants_rows or not leaves:
        leaves += sources
    else:
        sources = [source.detach() for source in sources]

    def gate(x: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(x) * up

    x = gate(*sources) if gated else sources[0]
    expected = [
        x @ w.T + (0 if pair is None else x @ pair.a @ pair.b * pair.scale)
        for w, pair in zip(weights, factors, strict=True)
    ]
    found = differentiable.products(
        [DenseWeight(w) for w in weights],
        factors,
        *sources,
        origin=Gated(gate, is_silu=True) if gated else None,
    )
    upstream = [leaf(generator, rows, size).detach() for size in outputs]
    gradients = torch.autograd.grad(found, leaves, upstream)
    terms = [(y * grad).sum() for y, grad in zip(expected, upstream, strict=True)]
    total = torch.stack(terms).sum()
    theirs = torch.autograd.grad(total, leaves)
    for ours, other in zip((*found, *gradients), (*expected, *theirs), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_in_bfloat16_they_are_right_to_the_type(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, a, b = (leaf(generator, *shape) for shape in ((70, 64), (64, 4), (4, 160)))
    matrix = torch.randn(160, 64, generator=generator) * 0.1
    weight: Weight = DenseWeight(matrix.bfloat16())
    if kind != "bfloat16":
        weight = quantize(matrix, "int8" if kind == "int8" else "int4")
    upstream = torch.randn(70, 160, generator=generator).bfloat16()
    expected = x @ weight.dequantize(torch.float64).T + x @ a @ b * 2
    theirs = torch.autograd.grad(expected, (x, a, b), upstream.double())
    our_a, our_b = (each.detach().float().requires_grad_() for each in (a, b))
    rows = x.detach().bfloat16().requires_grad_()
    (found,) = differentiable.products([weight], [Factors(our_a, our_b, 2.0)], rows)
    assert found.dtype == torch.bfloat16
    gradients = torch.autograd.grad(found, (rows, our_a, our_b), upstream)
    for mine, other in zip((found, *gradients), (expected, *theirs), strict=True):
        error = (mine.double() - other).norm() / other.norm()
        assert error < 0.01


def test_rows_are_kept_once_and_what_they_are_made_of_in_their_place() -> None:
    generator = torch.Generator().manual_seed(1)
    gate, up = (leaf(generator, 8, 16) for _ in range(2))
    weight = DenseWeight(leaf(generator, 24, 16))
    factors = [Factors(leaf(generator, 16, 2), leaf(generator, 2, 24), 1.0)]
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        origin = Gated(lambda x, y: x * y, is_silu=False)
        differentiable.products([weight], factors, gate, up, origin=origin)
    assert sorted(tuple(tensor.shape) for tensor in kept) == [
        (2, 24),
        (8, 2),
        (8, 16),
        (8, 16),
        (16, 2),
    ]
