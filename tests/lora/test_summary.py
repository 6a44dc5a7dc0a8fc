"""What an adapter does to each layer, against its dense matrices."""

import numpy as np
import pytest
import torch

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.summary import compare, summarise
from hyprstream.lora.weights import LoraWeights, pack
from hyprstream.vdb.tensors import SparseTensor
from tests.lora.adapters import dense, random_kinds

LINEARS = {f"layers.{i}.q_proj": (40, 24) for i in range(6)}


def adapter(seed: int) -> LoraWeights:
    return random_kinds(LINEARS, ["low_rank", "sparse", "tiny"], [3, 4], seed)


def test_norms_ranks_and_counts_are_those_of_the_dense_changes():
    weights = adapter(1)
    for module in summarise(pack(weights)):
        delta = weights.modules[module.path]
        assert module.norm == pytest.approx(float(dense(delta).norm()), rel=1e-6)
        assert (module.kind, module.rank) == (delta.kind, delta.rank)
        tensors = delta.pack().values()
        assert module.num_active == sum(tensor.num_active for tensor in tensors)
        assert module.density == module.num_active / sum(tensor.size for tensor in tensors)


def test_differences_are_those_of_the_dense_changes():
    first, second = adapter(1), adapter(2)
    for change in compare(pack(first), pack(second)):
        one, other = (dense(weights.modules[change.path]) for weights in (first, second))
        assert change.change == pytest.approx(float((one - other).norm()), rel=1e-6)
        assert change.relative == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-6)


def test_the_same_adapter_differs_by_nothing_at_all():
    assert [change.change for change in compare(pack(adapter(3)), pack(adapter(3)))] == [0.0] * 6


def test_a_layer_that_only_one_changes_differs_by_all_of_it():
    weights = adapter(4)
    path, delta = next(iter(weights.modules.items()))
    [change] = compare({}, pack(LoraWeights({path: delta})))
    assert change.before == 0
    assert change.change == change.after == pytest.approx(float(dense(delta).norm()))
    assert change.relative is None


def test_two_kinds_at_one_layer_cannot_be_compared():
    low_rank = random_kinds({"x": (8, 8)}, ["low_rank"], [2], 1)
    sparse = random_kinds({"x": (8, 8)}, ["sparse"], [2], 1)
    [change] = compare(pack(low_rank), pack(sparse))
    assert change.change is None


def test_a_product_too_large_to_be_made_has_a_norm():
    a = torch.randn(60_000, 2).double()
    tensors = {
        "x/low_rank/a": SparseTensor.from_dense(a.float().numpy(), "float32"),
        "x/low_rank/b": SparseTensor.from_dense(np.eye(2, 60_000, dtype=np.float32), "float32"),
    }
    assert summarise(tensors)[0].norm == pytest.approx(float(a.norm()), rel=1e-6)


@pytest.mark.parametrize(
    "shapes", [{"a": (4, 2)}, {"a": (4, 2), "b": (3, 4)}, {"a": (4, 2), "b": (2,)}]
)
def test_a_pair_that_is_none_is_an_error(shapes):
    tensors = {
        f"x/low_rank/{name}": SparseTensor.from_dense(np.ones(shape, np.float32), "float32")
        for name, shape in shapes.items()
    }
    with pytest.raises(InvalidAdapterError, match="consists of"):
        summarise(tensors)


def test_a_shape_that_few_values_claim_is_not_made_whole():
    nothing = SparseTensor(
        shape=(1 << 20, 1 << 20),
        dtype="float32",
        values=np.zeros(0, np.float32),
        indices=np.zeros(0, np.int64),
    )
    with pytest.raises(InvalidAdapterError, match="too large for an adapter"):
        summarise({"x/low_rank/a": nothing, "x/low_rank/b": nothing})
