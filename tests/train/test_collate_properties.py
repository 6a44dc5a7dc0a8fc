"""Packing, against the samples one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import ContextTooLongError, InvalidRequestError
from hyprstream.models.arch import llama
from hyprstream.train.collate import collate, packs
from hyprstream.train.sample import Sample
from tests.lora.adapters import CPU
from tests.models.reference import variants

CONFIG = llama.parse(variants("llama")["plain"])  # 97 tokens, a context of 128


Fields = tuple[tuple[int, ...], tuple[bool, ...], float]


@st.composite
def fields(draw) -> Fields:
    ids = draw(st.lists(st.integers(0, 96), min_size=2, max_size=40))
    counts = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    counts[draw(st.integers(1, len(ids) - 1))] = True
    return tuple(ids), tuple(counts), draw(st.sampled_from([0.5, 1.0, 3.0]))


@given(st.lists(fields(), min_size=1, max_size=8))
def test_every_token_that_counts_is_a_target_of_the_row_before_it_once(drawn: list[Fields]):
    chosen = [Sample(*each) for each in drawn]
    packed = collate(chosen, CONFIG, CPU)
    found = []
    starts = torch.tensor([0, *packed.lengths]).cumsum(0)
    for row, target, weight, number in zip(
        packed.rows, packed.targets, packed.weights, packed.samples, strict=True
    ):
        position = int(packed.positions[row])
        assert starts[number] + position == row
        assert packed.token_ids[row] == chosen[number].token_ids[position]
        found.append((int(number), position + 1, int(target), float(weight)))
    expected = [
        (number, i, sample.token_ids[i], sample.weight)
        for number, sample in enumerate(chosen)
        for i in range(1, len(sample.token_ids))
        if sample.counts[i]
    ]
    assert found == expected
    assert packed.weight == sum(weight for *_, weight in expected)
    assert len(packed.token_ids) == sum(packed.lengths) == len(packed.positions)
    for sample, length in zip(chosen, packed.lengths, strict=True):
        assert sample.counts[length]
        assert not any(sample.counts[length + 1 :])


@given(st.lists(fields(), max_size=12), st.integers(39, 90))
def test_packs_keep_all_samples_in_order_and_are_as_full_as_that_allows(
    drawn: list[Fields], room: int
):
    chosen = [Sample(*each) for each in drawn]
    found = list(packs(chosen, room))
    assert [sample for pack in found for sample in pack] == chosen
    sizes = [sum(sample.num_computed for sample in pack) for pack in found]
    assert all(0 < size <= room for size in sizes)
    for size, following in zip(sizes, found[1:], strict=False):
        assert size + following[0].num_computed > room


def test_a_sample_that_fits_no_batch_or_no_model_is_refused():
    long = Sample.text([1] * 130)
    with pytest.raises(InvalidRequestError, match="129 tokens, a batch takes 128"):
        list(packs([long], 128))
    with pytest.raises(ContextTooLongError):
        collate([long], CONFIG, CPU)
    assert collate([Sample.text([1] * 129)], CONFIG, CPU).lengths == (128,)
    with pytest.raises(InvalidRequestError, match="97 tokens"):
        collate([Sample.text([96, 97])], CONFIG, CPU)
    with pytest.raises(InvalidRequestError, match="no samples"):
        collate([], CONFIG, CPU)


@pytest.mark.parametrize(
    ("ids", "counts", "weight"),
    [
        ((), (), 1.0),
        ((1,), (True,), 1.0),
        ((1, 2), (True, False), 1.0),
        ((1, 2), (True,), 1.0),
        ((1, -2), (True, True), 1.0),
        ((1, 2), (True, True), 0.0),
        ((1, 2), (True, True), float("nan")),
    ],
)
def test_samples_that_teach_nothing_are_refused(ids, counts, weight):
    with pytest.raises(InvalidRequestError):
        Sample(ids, counts, weight)
