"""What every kind of adapter does beyond its arithmetic: packs, refuses, combines."""

import math

import numpy as np
import pytest
import torch

from hyprstream.errors import (
    IncompatibleAdapterError,
    InvalidAdapterError,
    UnsupportedError,
)
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.delta import Delta
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.kinds.sparse import Sparse
from hyprstream.lora.kinds.tiny import Tiny
from hyprstream.lora.mask import Mask
from hyprstream.lora.merge import fuse, take_out
from hyprstream.lora.weights import LoraWeights, combine, pack, unpack
from hyprstream.models.quant import DenseWeight
from hyprstream.vdb.tensors import SparseTensor
from tests.lora.adapters import dense, make_bank, random_basis, random_sparse, random_tiny

SHAPE = (12, 10)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base() -> BaseLayers:
    """The model whose bases `random_basis` gives."""
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(11))
    return BaseLayers({path: DenseWeight(weight) for path in "qvk"})


def mask(*indices: int, shape: tuple[int, int] = SHAPE) -> Mask:
    return Mask(shape, torch.tensor(indices))


def every_kind(dtype: torch.dtype) -> LoraWeights:
    """With and without masks; some active values are zero, one is -0."""
    a_mask, b_mask = mask(0, 7, 19, shape=(10, 2)), mask(3, 4, shape=(2, 12))
    core_mask = mask(0, 5, shape=(3, 3))
    values = torch.tensor([0.0, -0.0, 1e-7, 3.0], dtype=dtype)
    return LoraWeights(
        {
            "layers.0.q": LowRank(normal(10, 3).to(dtype), normal(3, 12, seed=1).to(dtype)),
            "layers.0.k": LowRank(
                a_mask.spread(normal(3).to(dtype)),
                b_mask.spread(torch.tensor([-0.0, 2.0], dtype=dtype)),
                a_mask,
                b_mask,
            ),
            "layers.0.v": Sparse(values, mask(1, 2, 60, 119)),
            "q": Tiny(normal(3, 3).to(dtype), random_basis(SHAPE, 3)),
            "k": Tiny(core_mask.spread(normal(2).to(dtype)), random_basis(SHAPE, 3), core_mask),
            "v": Sparse(normal(120).to(dtype), Mask.full(SHAPE)),
        }
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_packed_comes_back_bit_by_bit(dtype):
    weights = every_kind(dtype)
    tensors = pack(weights)
    assert tensors["layers.0.k/low_rank/a"].num_active == 3
    assert tensors["layers.0.v/sparse/delta"].shape == SHAPE
    assert {tensor.dtype for tensor in tensors.values()} == {str(dtype).removeprefix("torch.")}
    back = unpack(dict(reversed(tensors.items())), base())
    assert back.fingerprint() == weights.fingerprint()
    assert back.modules.keys() == weights.modules.keys()
    for path, delta in weights.modules.items():
        for name, tensor in delta.tensors().items():
            found = back.modules[path].tensors()[name]
            assert found.dtype == tensor.dtype
            width = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(found.contiguous().view(width), tensor.contiguous().view(width))


def test_what_is_packed_can_change_without_a_change_of_the_adapter():
    weights = every_kind(torch.float32)
    before = weights.fingerprint()
    for tensor in pack(weights).values():
        tensor.values[:] = 9
    assert LoraWeights(weights.modules).fingerprint() == before


def test_masks_and_bases_are_part_of_the_fingerprint():
    zeros = torch.zeros(2)
    other_basis = Tiny(torch.ones(3, 3), random_tiny((10, 12), 3, 0).basis)
    contents: list[Delta] = [
        Sparse(zeros, mask(1, 2)),
        Sparse(zeros, mask(1, 3)),
        Sparse(torch.zeros(3), mask(1, 2, 3)),
        LowRank(torch.ones(10, 1), torch.zeros(1, 12)),
        LowRank(torch.ones(10, 1), torch.zeros(1, 12), None, mask(0, shape=(1, 12))),
        Tiny(torch.ones(3, 3), random_basis(SHAPE, 3)),
        other_basis,
    ]
    assert len({LoraWeights({"q": delta}).fingerprint() for delta in contents}) == len(contents)


def sparse_tensor(shape, count=None, dtype="float32", fill=1.0) -> SparseTensor:
    indices = None if count is None else np.arange(count, dtype=np.int64)
    values = np.full(math.prod(shape) if count is None else count, fill, dtype=np.float32)
    return SparseTensor(shape=shape, dtype=dtype, values=values, indices=indices)


NAN = float("nan")
HOSTILE = {
    "no kind": {"q": sparse_tensor((2, 2))},
    "empty part": {"q//a": sparse_tensor((2, 2))},
    "two kinds": {
        "q/low_rank/a": sparse_tensor((2, 2)),
        "q/sparse/delta": sparse_tensor((2, 2)),
    },
    "half a low rank": {"q/low_rank/a": sparse_tensor((2, 2))},
    "three factors": {f"q/low_rank/{name}": sparse_tensor((2, 2)) for name in "abc"},
    "other ranks": {"q/low_rank/a": sparse_tensor((2, 2)), "q/low_rank/b": sparse_tensor((3, 2))},
    "no rank": {"q/low_rank/a": sparse_tensor((2, 0)), "q/low_rank/b": sparse_tensor((0, 2))},
    "a huge claim": {
        "q/low_rank/a": sparse_tensor((2**40, 2), 1),
        "q/low_rank/b": sparse_tensor((2, 2)),
    },
    "a cube": {"q/sparse/delta": sparse_tensor((2, 2, 2))},
    "not a number": {"q/sparse/delta": sparse_tensor((2, 2), fill=NAN)},
    "another name": {"q/sparse/values": sparse_tensor((2, 2))},
    "an oblong core": {"q/tiny/core-0": sparse_tensor((2, 3))},
    "a nameless core": {"q/tiny/core": sparse_tensor((2, 2))},
    "an empty core": {"q/tiny/core-0": sparse_tensor((0, 0))},
    "a huge core": {"q/tiny/core-0": sparse_tensor((2**30, 2**30), 1)},
    "a wide core": {"q/tiny/core-0": sparse_tensor((100, 100), 1)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_tensors_that_are_no_adapter_are_refused(name):
    with pytest.raises(InvalidAdapterError):
        unpack(HOSTILE[name], base())


def test_a_kind_that_nobody_knows_is_named():
    with pytest.raises(UnsupportedError, match="'loha' is not a kind of adapter"):
        unpack({"q/loha/a": sparse_tensor((2, 2))})
    with pytest.raises(UnsupportedError, match="'__init__'"):
        unpack({"q/__init__/a": sparse_tensor((2, 2))})


def test_a_core_needs_the_weight_that_it_was_trained_for():
    tensors = pack(LoraWeights({"q": random_tiny(SHAPE, 3, seed=1)}))
    with pytest.raises(InvalidAdapterError, match="nothing without the base model"):
        unpack(tensors)
    other = BaseLayers({"q": DenseWeight(normal(*SHAPE, seed=12))})
    with pytest.raises(IncompatibleAdapterError, match="the tiny adapter at q is for a weight"):
        unpack(tensors, other)
    with pytest.raises(IncompatibleAdapterError, match="no linear layer at q"):
        unpack(tensors, BaseLayers({}))


def test_values_outside_of_a_mask_are_refused():
    only = mask(0, shape=(2, 2))
    with pytest.raises(InvalidAdapterError, match="A holds values outside"):
        LowRank(torch.ones(2, 2), torch.ones(2, 2), a_mask=only)
    with pytest.raises(InvalidAdapterError, match="B holds values outside"):
        LowRank(torch.ones(2, 2), torch.ones(2, 2), b_mask=only)
    with pytest.raises(InvalidAdapterError, match="the core holds values outside"):
        Tiny(torch.ones(2, 2), random_basis(SHAPE, 2), only)
    with pytest.raises(InvalidAdapterError, match=r"\(2,\) values are for 1 elements"):
        Sparse(torch.ones(2), only)
    with pytest.raises(InvalidAdapterError, match=r"of shape \(4,\)"):
        Sparse(torch.ones(1), Mask((4,), torch.tensor([0])))


def test_deltas_do_not_change_with_what_they_were_made_from():
    values, core = torch.ones(2), torch.ones(2, 2)
    sparse, tiny = Sparse(values, mask(0, 1)), Tiny(core, random_basis(SHAPE, 2))
    values.zero_()
    core.zero_()
    assert sparse.values.sum() == 2
    assert tiny.core.sum() == 4


FACTORS = (0.3, -2.0, 1.0)
PARTS: dict[str, list[Delta]] = {
    "low_rank": [
        LowRank(normal(10, 2), normal(2, 12)),
        LowRank(torch.eye(10)[:, :1], torch.ones(1, 12), mask(0, shape=(10, 1))),
        LowRank(normal(10, 3, seed=4), normal(3, 12, seed=5)),
    ],
    "sparse": [random_sparse(SHAPE, sparsity, seed=i) for i, sparsity in enumerate((0.9, 0.5, 0))],
    "tiny": [random_tiny(SHAPE, rank, seed=rank) for rank in (2, 5, 3)],
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_combination_is_the_weighted_sum(kind):
    parts = [LoraWeights({"q": delta}) for delta in PARTS[kind]]
    both = combine(list(zip(parts, FACTORS, strict=True))).modules["q"]
    changes = [f * dense(delta) for delta, f in zip(PARTS[kind], FACTORS, strict=True)]
    expected = torch.stack(changes).sum(0)
    torch.testing.assert_close(dense(both), expected, atol=1e-5, rtol=1e-5)
    assert combine([(parts[1], 1.0)]).fingerprint() == parts[1].fingerprint()


def test_a_combination_of_masked_parts_is_masked():
    first, second = Sparse(torch.ones(2), mask(1, 5)), Sparse(torch.ones(2), mask(5, 9))
    both = Sparse.combine([(first, 1.0), (second, 0.5)])
    assert both.mask.indices.tolist() == [1, 5, 9]
    assert both.values.tolist() == [1, 1.5, 0.5]
    low_rank = PARTS["low_rank"][1]
    assert isinstance(low_rank, LowRank)
    joined = LowRank.combine([(low_rank, 1.0), (low_rank, 2.0)])
    assert joined.a_mask is not None
    assert joined.a_mask.num_active == 2
    assert joined.b_mask is None


def test_parts_of_other_weights_or_shapes_are_not_combined():
    other = random_tiny((10, 12), 2, seed=0)
    with pytest.raises(InvalidAdapterError, match="cannot be combined"):
        Tiny.combine([(random_tiny(SHAPE, 2, seed=0), 1.0), (other, 1.0)])
    with pytest.raises(InvalidAdapterError, match=r"\(10, 12\) and \(12, 10\)"):
        Sparse.combine([(random_sparse(s, 0.5, seed=0), 1.0) for s in (SHAPE, SHAPE[::-1])])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dense_change_is_what_is_fused_and_taken_out(dtype):
    weights = every_kind(torch.float32)
    before = {path: normal(*SHAPE, seed=i).to(dtype) for i, path in enumerate(weights.modules)}
    fused = fuse(before, weights)
    for path, delta in weights.modules.items():
        torch.testing.assert_close(delta.dense().double(), dense(delta), atol=1e-5, rtol=1e-5)
        expected = (before[path].double() + dense(delta)).to(dtype)
        torch.testing.assert_close(fused[path], expected)
        after = take_out(fused, weights)[path]
        unit = torch.finfo(dtype).eps * float(fused[path].abs().max())
        torch.testing.assert_close(after, before[path], atol=2 * unit, rtol=0)


def test_an_adapter_of_another_model_is_not_fused():
    weights = LoraWeights({"q": random_sparse(SHAPE, 0.5, seed=0)})
    with pytest.raises(IncompatibleAdapterError, match=r"\(12, 10\) at q, the model has none"):
        fuse({}, weights)
    with pytest.raises(IncompatibleAdapterError, match=r"the model has \(3, 3\)"):
        fuse({"q": torch.ones(3, 3)}, weights)


def test_slots_share_a_basis_and_drop_it_with_its_last_user():
    bank = make_bank({"q": SHAPE}, num_slots=3, max_rank=4)
    basis_bytes, core_bytes = 4 * 3 * sum(SHAPE), 4 * 3 * 3
    first = random_tiny(SHAPE, 3, seed=1)
    alike = unpack(pack(LoraWeights({"q": random_tiny(SHAPE, 3, seed=2)})), base())
    assert alike.modules["q"].size_bytes == core_bytes
    bank.write(1, LoraWeights({"q": first}))
    bank.write(2, alike)
    assert bank.size_bytes == basis_bytes + 2 * core_bytes
    bank.clear(1)
    assert bank.size_bytes == basis_bytes + core_bytes
    bank.clear(2)
    assert bank.size_bytes == 0


def test_slots_take_no_more_than_they_have_room_for():
    bank = make_bank({"q": (200, 100)}, num_slots=1, max_rank=2)
    room = 2 * 300 * 4
    fits = random_sparse((200, 100), 0.996, seed=0)
    bank.write(1, LoraWeights({"q": fits}))
    assert bank.size_bytes == fits.mask.num_active * 8 + 201 * 4 <= room
    with pytest.raises(IncompatibleAdapterError, match=rf"takes \d+ bytes, .* room for {room}"):
        bank.write(1, LoraWeights({"q": random_sparse((200, 100), 0.9, seed=0)}))
    with pytest.raises(IncompatibleAdapterError, match="takes 80000 bytes"):
        bank.check(LoraWeights({"q": random_sparse((200, 100), 0.5, seed=0)}))
    with pytest.raises(IncompatibleAdapterError, match="rank 3 at q, slots have room for 2"):
        bank.write(1, LoraWeights({"q": random_tiny((200, 100), 3, seed=0)}))
    assert bank.size_bytes == fits.mask.num_active * 8 + 201 * 4
