"""Training an adapter, against autograd on the dense sum W + D."""

import pytest
import torch
from torch import Tensor

from hyprstream.lora.bank import SummedView
from hyprstream.lora.delta import Delta
from hyprstream.lora.gradients import WeightGradients
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.kinds.sparse import Sparse
from hyprstream.lora.kinds.tiny import Tiny
from hyprstream.lora.leaf import Regrowth
from hyprstream.lora.mask import Mask, drop_and_grow, seeded
from hyprstream.lora.spec import Structure
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import LoraWeights
from tests.lora.adapters import (
    CPU,
    dense,
    random_basis,
    random_low_rank,
    random_sparse,
    random_tiny,
)

SHAPE = (40, 30)
SCALE = 2.0


def masked_low_rank() -> LowRank:
    full = random_low_rank(SHAPE, 4, torch.Generator().manual_seed(3))
    masks = [
        seeded(tuple(tensor.shape), 0.7, structure="unstructured", seed=1, name=name)
        for name, tensor in full.tensors().items()
    ]
    a, b = (
        mask.spread(mask.active(tensor))
        for mask, tensor in zip(masks, full.tensors().values(), strict=True)
    )
    return LowRank(a, b, *masks)


def masked_tiny() -> Tiny:
    mask = seeded((6, 6), 0.5, structure="unstructured", seed=1, name="core")
    values = torch.arange(1.0, 1 + mask.num_active)
    return Tiny(mask.spread(values), random_basis(SHAPE, 6), mask)


DELTAS: dict[str, Delta] = {
    "low_rank": random_low_rank(SHAPE, 4, torch.Generator().manual_seed(3)),
    "masked low_rank": masked_low_rank(),
    "sparse rows": random_sparse(SHAPE, 0.9, seed=2),
    "sparse leaf": random_sparse(SHAPE, 0.9, seed=2, structure="leaf"),
    "dense sparse": random_sparse(SHAPE, 0.5, seed=2),
    "tiny": random_tiny(SHAPE, 6, seed=4),
    "masked tiny": masked_tiny(),
}


def masks_of(delta: Delta) -> dict[str, Mask | None]:
    if isinstance(delta, LowRank):
        return {"a": delta.a_mask, "b": delta.b_mask}
    if isinstance(delta, Sparse):
        return {"delta": delta.mask}
    assert isinstance(delta, Tiny)
    return {"core": delta.mask}


def change(delta, leaves: dict[str, Tensor]) -> Tensor:
    """D of whole tensors, in float64, as autograd sees it; scales are part of the leaves."""
    if isinstance(delta, LowRank):
        return (leaves["a"] @ leaves["b"]).T
    if isinstance(delta, Sparse):
        return leaves["delta"]
    return (delta.basis.down.double() @ leaves["core"] @ delta.basis.up.double()).T


def rows(count: int = 7) -> Tensor:
    return torch.randn(count, SHAPE[1], generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("name", DELTAS)
@pytest.mark.parametrize("num_rows", [1, 7, 100])
def test_products_and_gradients_are_those_of_the_dense_change(name, num_rows):
    delta = DELTAS[name]
    x = rows(num_rows).requires_grad_()
    lora = TrainableLora(LoraWeights({"q": delta}), device=CPU, scales={"q": SCALE})
    weight = torch.randn(num_rows, SHAPE[0], generator=torch.Generator().manual_seed(9))
    ours = lora.delta("q", x)
    assert ours is not None
    (ours * weight).sum().backward()

    leaves = {n: t.double().clone().requires_grad_() for n, t in delta.tensors().items()}
    x64 = x.detach().double().requires_grad_()
    theirs = x64 @ change(delta, leaves).T
    (theirs * weight).sum().backward()

    torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)
    assert x.grad is not None
    assert x64.grad is not None
    torch.testing.assert_close(x.grad.double(), x64.grad, atol=1e-4, rtol=1e-4)
    parameters = lora.parameters()
    assert parameters.keys() == {f"q/{delta.kind}/{n}" for n in leaves}
    for n, mask in masks_of(delta).items():
        expected = leaves[n].grad
        assert expected is not None
        # The scale is folded into everything but A: the parameter is that much smaller.
        expected = expected * (1 if n == "a" else SCALE)
        found = parameters[f"q/{delta.kind}/{n}"].grad
        assert found is not None
        expected = expected if mask is None else mask.active(expected)
        torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", DELTAS)
def test_no_optimizer_moves_what_lies_outside_of_a_mask(name):
    delta = DELTAS[name]
    lora = TrainableLora(LoraWeights({"q": delta}), device=CPU, scales={"q": SCALE})
    optimizer = torch.optim.AdamW(lora.parameters().values(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        added = lora.delta("q", rows())
        assert added is not None
        added.square().sum().backward()
        optimizer.step()
    after = lora.snapshot().modules["q"]
    assert type(after) is type(delta)
    for n, mask in masks_of(after).items():
        before, now = delta.tensors()[n], after.tensors()[n]
        assert not torch.equal(before, now)
        if mask is not None:
            assert 0 < mask.num_active < mask.size
            assert not now[~mask.dense()].any()
    added = lora.delta("q", rows())
    torch.testing.assert_close(added, (rows().double() @ dense(after).T).float())


def test_a_snapshot_of_an_untouched_adapter_is_the_adapter():
    weights = LoraWeights({str(i): delta for i, delta in enumerate(DELTAS.values())})
    assert TrainableLora(weights, device=CPU).snapshot().fingerprint() == weights.fingerprint()


def test_a_layer_that_the_adapter_leaves_alone_gets_nothing():
    lora = TrainableLora(LoraWeights({"q": DELTAS["low_rank"]}), device=CPU)
    assert lora.delta("v", rows()) is None
    assert lora.select(torch.tensor([1])) is lora


@pytest.mark.parametrize("name", DELTAS)
def test_half_precision_rows_stay_so_and_gradients_are_float32(name):
    lora = TrainableLora(LoraWeights({"q": DELTAS[name]}), device=CPU)
    x = rows(100).bfloat16()
    added = lora.delta("q", x)
    assert added is not None
    assert added.dtype == torch.bfloat16
    expected = (x.double() @ dense(DELTAS[name]).T).float()
    scale = expected.abs().max()
    torch.testing.assert_close(added.float() / scale, expected / scale, atol=0.02, rtol=0.02)
    added.float().sum().backward()
    for parameter in lora.parameters().values():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_dropout_hides_inputs_at_random_and_keeps_their_mean():
    weights = LoraWeights({"q": DELTAS["low_rank"]})

    def added(lora: TrainableLora) -> Tensor:
        delta = lora.delta("q", rows(1))
        assert delta is not None
        return delta.detach()

    def fresh(seed: int) -> TrainableLora:
        return TrainableLora(weights, device=CPU, dropout=0.5, seed=seed)

    plain = added(TrainableLora(weights, device=CPU))
    assert torch.equal(added(fresh(1)), added(fresh(1)))
    assert not torch.equal(added(fresh(1)), added(fresh(2)))
    lora = fresh(1)
    assert torch.equal(added(lora.without_dropout()), plain)
    mean = torch.stack([added(lora) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, plain, atol=0.15, rtol=0.1)


def test_the_gradient_of_a_weight_is_seen_without_training_it():
    weight = torch.randn(SHAPE, requires_grad=True)
    x, target = rows(), torch.randn(7, SHAPE[0])
    (x @ weight.T - target).square().sum().backward()
    watch = WeightGradients({"q": SHAPE}, CPU)
    for part in (slice(0, 3), slice(3, 7)):  # in two passes
        added = watch.delta("q", x[part])
        assert added is not None
        y = x[part] @ weight.detach().T + added
        (y - target[part]).square().sum().backward()
    torch.testing.assert_close(watch.sums["q"], weight.grad, atol=1e-3, rtol=1e-4)
    assert watch.delta("v", x) is None


def test_a_watch_beside_an_adapter_sees_the_gradient_at_the_adapted_weight():
    delta = DELTAS["low_rank"]
    x = rows()
    lora = TrainableLora(LoraWeights({"q": delta}), device=CPU)
    watch = WeightGradients({"q": SHAPE}, CPU)
    added = SummedView([lora, watch]).delta("q", x)
    assert added is not None
    added.square().sum().backward()
    adapted = dense(delta).requires_grad_()
    (x.double() @ adapted.T).square().sum().backward()
    assert adapted.grad is not None
    torch.testing.assert_close(watch.sums["q"].double(), adapted.grad, atol=1e-3, rtol=1e-4)
    # From it follow the gradients of both factors.
    assert isinstance(delta, LowRank)
    parameters = lora.parameters()
    for name, expected in (
        ("a", watch.sums["q"].T @ delta.b.T),
        ("b", delta.a.T @ watch.sums["q"].T),
    ):
        found = parameters[f"q/low_rank/{name}"].grad
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["masked low_rank", "sparse rows", "sparse leaf", "masked tiny"])
def test_masks_move_to_where_the_loss_falls_fastest(name):
    delta = DELTAS[name]
    lora = TrainableLora(LoraWeights({"q": delta}), device=CPU, scales={"q": SCALE})
    optimizer = torch.optim.Adam(lora.parameters().values(), lr=0.01)
    watch = WeightGradients({"q": SHAPE}, CPU)
    added = SummedView([lora, watch]).delta("q", rows())
    assert added is not None
    (added - 1).square().sum().backward()
    optimizer.step()
    before = lora.snapshot().modules["q"]
    values = {n: parameter.detach().clone() for n, parameter in lora.parameters().items()}
    structure: Structure = "leaf" if name == "sparse leaf" else "unstructured"
    fraction = 1.0 if structure == "leaf" else 0.5  # the one leaf is the last, and short

    places = lora.regrow(watch.sums, Regrowth(fraction=fraction, structure=structure))

    # The gradients of whole tensors, by autograd, decide.
    leaves = {n: t.double().clone().requires_grad_() for n, t in before.tensors().items()}
    (change(delta, leaves) * watch.sums["q"].double()).sum().backward()
    after = lora.snapshot().modules["q"]
    for n, mask in masks_of(before).items():
        gradient = leaves[n].grad
        assert mask is not None
        assert gradient is not None
        expected = drop_and_grow(
            mask, before.tensors()[n], gradient, fraction=fraction, structure=structure
        )
        found = masks_of(after)[n]
        assert found is not None
        assert torch.equal(found.indices, expected.indices)
        assert not torch.equal(found.indices, mask.indices)
        full_name = f"q/{delta.kind}/{n}"
        for value, place, index in zip(
            lora.parameters()[full_name], places[full_name], found.indices, strict=True
        ):
            was_active = mask.indices.tolist().index(index) if place >= 0 else -1
            assert place == was_active
            assert value == (values[full_name][place] if place >= 0 else 0)
            assert (place >= 0) == (int(index) in mask.indices.tolist())
    added = lora.delta("q", rows())
    assert added is not None
    torch.testing.assert_close(added, (rows().double() @ dense(after).T).float())
    added.sum().backward()
    assert all(parameter.grad is not None for parameter in lora.parameters().values())


def test_tensors_without_a_mask_stay_as_they_are():
    weights = LoraWeights({"q": DELTAS["low_rank"], "v": DELTAS["tiny"]})
    lora = TrainableLora(weights, device=CPU)
    gradients = {path: torch.ones(SHAPE) for path in ("q", "v")}
    assert lora.regrow(gradients, Regrowth(fraction=0.5)) == {}
    assert lora.snapshot().fingerprint() == weights.fingerprint()
