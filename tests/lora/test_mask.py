import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.mask import LEAF_ELEMENTS, Mask, choose, drop_and_grow, seeded
from hyprstream.lora.seeds import uniform, words

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 60))
SPARSITIES = st.floats(0, 0.999)
STRUCTURES = st.sampled_from(["unstructured", "leaf"])
SEEDS = st.integers(0, 2**63)


def scores(shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**31))


def units(mask: Mask, structure: str) -> set[int]:
    """The elements or leaves that are active; leaves have to be whole."""
    numbers = set(mask.indices.tolist())
    if structure == "unstructured":
        return numbers
    leaves = {number // LEAF_ELEMENTS for number in numbers}
    every = {leaf * LEAF_ELEMENTS + i for leaf in leaves for i in range(LEAF_ELEMENTS)}
    assert numbers == {number for number in every if number < mask.size}
    return leaves


def num_units(size: int, structure: str) -> int:
    return size if structure == "unstructured" else -(-size // LEAF_ELEMENTS)


@settings(max_examples=50, deadline=None)
@given(SHAPES, SPARSITIES, STRUCTURES, SEEDS)
def test_a_seeded_mask_has_the_sparsity_that_was_asked_for(shape, sparsity, structure, seed):
    mask = seeded(shape, sparsity, structure=structure, seed=seed, name="q")
    total = num_units(shape[0] * shape[1], structure)
    assert mask.shape == shape
    assert abs(len(units(mask, structure)) - max(1, total * (1 - sparsity))) <= 0.5 + 1e-9
    again = seeded(shape, sparsity, structure=structure, seed=seed, name="q")
    assert torch.equal(mask.indices, again.indices)


@settings(max_examples=50, deadline=None)
@given(SHAPES, SPARSITIES, STRUCTURES)
def test_what_is_chosen_scores_higher_than_what_is_not(shape, sparsity, structure):
    given_scores = {"q": scores(shape), "v": scores(shape[::-1], seed=1) * 3}
    masks = choose(given_scores, sparsity, structure=structure)
    inside: list[float] = []
    outside: list[float] = []
    for name, tensor in given_scores.items():
        flat = tensor.abs().flatten()
        chosen = units(masks[name], structure)
        for unit in range(num_units(flat.numel(), structure)):
            piece = flat[unit] if structure == "unstructured" else flat[unit * 512 :][:512].sum()
            (inside if unit in chosen else outside).append(float(piece))
    total = 2 * num_units(shape[0] * shape[1], structure)
    assert len(inside) == max(1, int(total * (1 - sparsity) + 0.5))
    assert not outside or min(inside) >= max(outside) * (1 - 1e-5)


def test_seeded_masks_are_those_of_the_documented_generator():
    """SplitMix64 in plain integers, as its authors publish it."""

    def splitmix(state: int, count: int) -> list[int]:
        numbers = []
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = state
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            numbers.append(z ^ (z >> 31))
        return numbers

    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]  # published
    start = int.from_bytes(hashlib.sha256(b"7:layers.0.q").digest()[:8], "little")
    numbers = splitmix(start, 60)
    assert words(7, "layers.0.q", np.arange(60)).tolist() == numbers
    mask = seeded((6, 10), 0.8, structure="unstructured", seed=7, name="layers.0.q")
    assert mask.indices.tolist() == sorted(sorted(range(60), key=numbers.__getitem__)[:12])


def test_seeds_and_names_give_masks_of_their_own():
    masks = {
        tuple(seeded((30, 30), 0.9, structure="unstructured", seed=s, name=n).indices.tolist())
        for s in (1, 2)
        for n in ("q", "v")
    }
    assert len(masks) == 4


def test_uniform_numbers_fill_their_range_evenly():
    numbers = uniform(5, "a", 100_000)
    assert numbers.dtype == np.float32
    counts = np.histogram(numbers, bins=10, range=(-1, 1))[0]
    assert counts.sum() == 100_000
    assert abs(counts - 10_000).max() < 500


def test_equal_scores_are_decided_by_the_seed():
    same = {"q": torch.ones(20, 20)}
    first, second = (choose(same, 0.9, seed=seed)["q"] for seed in (1, 2))
    assert first.num_active == second.num_active == 40
    assert not torch.equal(first.indices, second.indices)


@given(st.sampled_from([float("nan"), float("inf")]), STRUCTURES)
def test_scores_that_are_no_numbers_are_refused(bad, structure):
    tensor = torch.ones(4, 4)
    tensor[1, 2] = bad
    with pytest.raises(InvalidAdapterError, match="no finite numbers"):
        choose({"q": tensor}, 0.5, structure=structure)


@settings(max_examples=50, deadline=None)
@given(SHAPES, SPARSITIES, STRUCTURES, st.floats(0, 1))
def test_drop_and_grow_keeps_the_count_the_large_and_takes_the_steep(
    shape, sparsity, structure, fraction
):
    mask = seeded(shape, sparsity, structure=structure, seed=1, name="q")
    weights = mask.spread(mask.active(scores(shape)))
    gradient = scores(shape, seed=2)
    moved = drop_and_grow(mask, weights, gradient, fraction=fraction, structure=structure)
    before, after = units(mask, structure), units(moved, structure)
    assert len(after) == len(before)
    assert len(before - after) <= int(fraction * len(before))
    if structure == "unstructured":
        w, g = weights.abs().flatten(), gradient.abs().flatten()
        num_kept = len(before) - int(fraction * len(before))
        kept = set(sorted(before, key=lambda i: -float(w[i]))[:num_kept])
        free = sorted(set(range(mask.size)) - kept, key=lambda i: -float(g[i]))
        assert after == kept | set(free[: len(before) - num_kept])


def test_values_go_in_and_out_of_a_mask():
    mask = Mask((2, 3), torch.tensor([1, 5]))
    tensor = mask.spread(torch.tensor([2.0, 3.0]))
    assert tensor.tolist() == [[0, 2, 0], [0, 0, 3]]
    assert mask.active(tensor).tolist() == [2, 3]
    assert mask.sparsity == pytest.approx(4 / 6)
    assert torch.equal(Mask.from_dense(mask.dense()).indices, mask.indices)
    mask.check(tensor, "W")
    with pytest.raises(InvalidAdapterError, match="W holds values outside"):
        mask.check(torch.ones(2, 3), "W")
    with pytest.raises(InvalidAdapterError, match=r"W has \(3, 2\)"):
        mask.check(tensor.T, "W")


@pytest.mark.parametrize(
    "indices",
    [
        torch.tensor([1, 1]),
        torch.tensor([2, 1]),
        torch.tensor([-1]),
        torch.tensor([6]),
        torch.tensor([0], dtype=torch.int32),
        torch.tensor([[0]]),
    ],
)
def test_indices_that_are_no_mask_are_refused(indices):
    with pytest.raises(InvalidAdapterError, match="a mask does not fit"):
        Mask((2, 3), indices)
