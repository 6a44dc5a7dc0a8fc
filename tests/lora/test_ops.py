import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.lora.ops import Share, cut, low_rank_product, row_by_row, storage_dtype
from hyprstream.lora.regions import Region
from tests.lora.adapters import CPU

INPUTS, OUTPUTS = 5, 7


@st.composite
def mixtures(draw):
    """Ranks of some adapters, and which of them each row uses: 0 is none."""
    ranks = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    slots = draw(st.lists(st.integers(1, len(ranks)), min_size=1, max_size=12))
    return ranks, slots, draw(st.integers(0, 2**31))


def stacked(ranks, slots, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(slots), INPUTS, generator=generator).to(dtype)
    a = torch.randn(sum(ranks), INPUTS, generator=generator)
    b = torch.randn(sum(ranks), OUTPUTS, generator=generator)
    owners = torch.tensor([slot for slot, rank in enumerate(ranks, 1) for _ in range(rank)])
    return x, a, b, torch.tensor(slots)[:, None] != owners


def apart(ranks, a, b):
    """The adapters of a stack one by one, as the reference takes them."""
    parts = zip(a.split(ranks), b.split(ranks), strict=True)
    return {slot: (a.T, b) for slot, (a, b) in enumerate(parts, 1)}


@given(mixtures())
def test_one_masked_product_equals_each_row_with_its_own_adapter(mixture):
    ranks, slots, seed = mixture
    x, a, b, others = stacked(ranks, slots, seed)
    expected = row_by_row(x, slots, apart(ranks, a, b), OUTPUTS)
    torch.testing.assert_close(low_rank_product(x, a, b, others), expected)


@given(mixtures())
def test_gradients_are_those_of_each_row_with_its_own_adapter(mixture):
    ranks, slots, seed = mixture
    x, a, b, others = stacked(ranks, slots, seed)
    leaves = [leaf.requires_grad_() for leaf in (x, a, b)]
    weight = torch.randn(len(slots), OUTPUTS, generator=torch.Generator().manual_seed(seed))
    ours = torch.autograd.grad((low_rank_product(x, a, b, others) * weight).sum(), leaves)
    rows = row_by_row(x, slots, apart(ranks, a, b), OUTPUTS)
    theirs = torch.autograd.grad((rows * weight).sum(), leaves)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("num_rows", [3, 200])
def test_half_precision_rows_are_multiplied_as_precisely_as_their_dtype_allows(num_rows):
    x, a, b, _ = stacked([8], [1] * num_rows, seed=0, dtype=torch.bfloat16)
    exact = (x.double() @ a.double().T @ b.double()).bfloat16()
    ours = low_rank_product(x, a, b)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, exact, atol=0.1, rtol=0.02)


def test_what_overflows_in_another_adapter_does_not_reach_a_row():
    x = torch.full((2, 1), 2.0, dtype=torch.float16)
    a = torch.tensor([[1.0], [60000.0]], dtype=torch.float16)
    b = torch.ones(2, 3, dtype=torch.float16)
    others = torch.tensor([[False, True], [True, False]])
    added = low_rank_product(x, a, b, others)
    assert added[0].tolist() == [2.0, 2.0, 2.0]
    assert added[1].isinf().all()


def test_rows_without_an_adapter_add_nothing_in_the_reference():
    x = torch.ones(2, INPUTS)
    added = row_by_row(x, [0, 1], {1: (torch.ones(INPUTS, 1), torch.ones(1, OUTPUTS))}, OUTPUTS)
    assert added[0].tolist() == [0.0] * OUTPUTS
    assert added[1].tolist() == [INPUTS] * OUTPUTS


def test_float32_is_what_a_cpu_multiplies_fastest():
    assert storage_dtype(torch.bfloat16, CPU) == torch.float32
    assert storage_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16


def shares(*regions_and_rows: tuple[int, int, int]) -> list[Share]:
    return [
        Share(slot, Region(start, stop), num_rows)
        for slot, (start, stop, num_rows) in enumerate(regions_and_rows, 1)
    ]


def sizes(blocks) -> list[int]:
    return [len(block) for block in blocks]


def test_a_few_rows_of_neighbouring_slots_are_one_block():
    assert sizes(cut(shares(*((16 * i, 16 * i + 16, 1) for i in range(8))))) == [8]


def test_many_rows_are_not_multiplied_with_the_adapters_of_others():
    assert sizes(cut(shares((0, 16, 1), (16, 32, 500), (32, 48, 1)))) == [1, 1, 1]
    assert max(sizes(cut(shares(*((16 * i, 16 * i + 16, 1) for i in range(64)))))) <= 9


def test_a_wide_gap_between_slots_is_not_read():
    assert sizes(cut(shares((0, 16, 1), (16, 32, 1), (512, 528, 1)))) == [2, 1]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 64), st.integers(1, 100))))
def test_every_share_is_in_one_block_in_order(specs):
    regions, start = [], 0
    for gap, num_ranks, num_rows in specs:
        regions.append((start + gap, start + gap + num_ranks, num_rows))
        start += gap + num_ranks
    given_shares = shares(*regions)
    assert [share for block in cut(given_shares) for share in block] == given_shares
