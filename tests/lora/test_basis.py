import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.basis import BaseLayers, Basis, digest, singular_basis
from hyprstream.models.quant import DenseWeight


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed).double())[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_the_vectors_rebuild_the_weight(outputs, inputs, seed):
    weight = normal(outputs, inputs, seed=seed)
    basis = singular_basis(weight, min(outputs, inputs))
    eye = torch.eye(basis.rank)
    torch.testing.assert_close(basis.down.T @ basis.down, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(basis.up @ basis.up.T, eye, atol=1e-5, rtol=0)
    values = basis.up @ weight @ basis.down
    expected = torch.diag(torch.linalg.svdvals(weight.double())).float()
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)


def test_each_vector_points_to_its_largest_component():
    basis = singular_basis(normal(9, 7), 5)
    largest = basis.down.abs().argmax(0)
    assert (basis.down[largest, torch.arange(5)] > 0).all()


def test_a_lower_rank_is_the_beginning_of_a_higher_one():
    weight = normal(9, 7)
    low, high = singular_basis(weight, 3), singular_basis(weight, 6)
    assert torch.equal(low.down, high.down[:, :3])
    assert torch.equal(low.up, high.up[:3])
    assert low.digest == high.digest


def test_equal_singular_values_leave_no_freedom():
    """The same W from two decompositions: its threefold singular value has any basis."""
    values = torch.diag(torch.tensor([5.0, 2.0, 2.0, 2.0, 1.0, 0.0]).double())
    left, right = rotation(8, 1)[:, :6], rotation(6, 2)
    exact = left @ values @ right.T
    turn = torch.eye(6).double()
    turn[1:4, 1:4] = rotation(3, 3)
    again = (left @ turn) @ values @ (right @ turn).T
    first, second = (singular_basis(weight.double(), 6) for weight in (exact, again))
    torch.testing.assert_close(first.down, second.down, atol=1e-5, rtol=0)
    torch.testing.assert_close(first.up, second.up, atol=1e-5, rtol=0)
    for one in (singular_basis(exact, 3), singular_basis(again, 3)):  # cut within the three
        torch.testing.assert_close(one.down, first.down[:, :3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("weight", [torch.zeros(4, 6), torch.eye(6)[:4], torch.ones(4, 6)])
def test_weights_without_a_spectrum_have_a_basis_all_the_same(weight):
    basis = singular_basis(weight, 4)
    eye = torch.eye(4)
    torch.testing.assert_close(basis.down.T @ basis.down, eye, atol=1e-6, rtol=0)
    torch.testing.assert_close(basis.up @ basis.up.T, eye, atol=1e-6, rtol=0)
    rebuilt = basis.up.T @ (basis.up @ weight @ basis.down) @ basis.down.T
    torch.testing.assert_close(rebuilt, weight, atol=1e-5, rtol=0)


def test_the_vectors_of_nothing_are_the_axes():
    basis = singular_basis(torch.zeros(3, 5), 3)
    assert torch.equal(basis.down, torch.eye(5)[:, :3])
    assert torch.equal(basis.up, torch.eye(3))


def test_a_digest_tells_weights_apart():
    weight = normal(4, 6)
    nudged = weight.clone()
    nudged[3, 5] += 1e-6
    others = [nudged, weight.view(6, 4), weight.T.contiguous()]
    assert len({digest(weight), *(digest(other) for other in others)}) == 4
    assert digest(weight) == digest(weight.T.contiguous().T)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_a_layer_does_not_have_is_refused(rank):
    with pytest.raises(InvalidAdapterError, match=f"no singular basis of rank {rank}"):
        singular_basis(normal(4, 6), rank)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (torch.ones(4, 2), torch.ones(3, 6)),
        (torch.ones(4), torch.ones(4, 6)),
        (torch.full((4, 2), float("nan")), torch.ones(2, 6)),
        (torch.ones(4, 2, dtype=torch.int8), torch.ones(2, 6)),
    ],
)
def test_matrices_that_are_no_basis_are_refused(down, up):
    with pytest.raises(InvalidAdapterError):
        Basis(down, up, "0" * 16)


def test_a_base_model_computes_each_basis_once_and_knows_its_layers():
    weight = normal(4, 6).bfloat16()
    base = BaseLayers({"q": DenseWeight(weight)})
    assert torch.equal(base.weight("q"), weight.float())
    basis = base.basis("q", 2)
    assert base.basis("q", 2) is basis
    assert base.size_bytes == basis.size_bytes == 4 * 2 * (4 + 6)
    del basis
    assert base.size_bytes == 0, "no adapter needs it any more"
    with pytest.raises(IncompatibleAdapterError, match="no linear layer at k"):
        base.basis("k", 2)
