"""The native kernel equals torch, and a row does not feel the others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.kernels.native import KINDS, Instructions, open_kernels
from hyprstream.lora.native_rows import NativeRows, RowGroups
from hyprstream.lora.ops import low_rank_product
from hyprstream.lora.regions import Region

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(
    open_kernels() is None, reason="the native kernels are not compiled: is there a C++ compiler?"
)


def kernel(dtype, instructions=Instructions.AVX512_BF16):
    """The kernel with the widest instructions that there are up to the given ones."""
    kernels = open_kernels()
    assert kernels is not None
    kernels.instructions = kernels.widest(instructions)
    return NativeRows(kernels, KINDS[str(dtype).removeprefix("torch.")], dtype)


def every_kind():
    """Instructions that differ here, from the widest down."""
    kernels = open_kernels()
    assert kernels is not None
    return [
        each for each in (Instructions.AVX512_BF16, Instructions.PLAIN) if each in kernels.available
    ]


def expected(x, a, b, groups):
    """Each group by itself in torch, in float64."""
    added = x.new_full((len(x), b.shape[1]), -0.0)
    for region, rows in groups:
        ranks = slice(region.start, region.stop)
        parts = (t.double() for t in (x[rows], a[ranks], b[ranks]))
        added[rows] = low_rank_product(*parts).to(x.dtype)
    return added


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 150),
    slots=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    ranks=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_rows_get_what_their_ranks_add_and_others_nothing(
    inputs, outputs, slots, ranks, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    starts = [sum(ranks[:i]) for i in range(4)]
    x = torch.randn(len(slots), inputs, generator=generator).to(dtype)
    a = torch.randn(sum(ranks), inputs, generator=generator).to(dtype)
    b = torch.randn(sum(ranks), outputs, generator=generator).to(dtype)
    groups = [
        (Region(starts[slot - 1], starts[slot - 1] + ranks[slot - 1]), rows)
        for slot in range(1, 5)
        if (rows := [row for row, each in enumerate(slots) if each == slot])
    ]
    wanted = expected(x, a, b, groups)
    scale = float(wanted.abs().max()) + 1
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for instructions in every_kind():
        rows_of = kernel(dtype, instructions)
        ours = rows_of.product(x, a, b, RowGroups.of(groups))
        torch.testing.assert_close(ours, wanted, atol=tolerance * scale, rtol=tolerance)
        idle = [row for row, slot in enumerate(slots) if slot == 0]
        assert (ours[idle].float().view(torch.int32) == -(2**31)).all(), "idle rows get -0"
        for region, rows in groups:
            alone = rows_of.product(x[rows[:1]], a, b, RowGroups.of([(region, [0])]))
            assert torch.equal(alone[0], ours[rows[0]]), "a row feels its neighbours"


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_are_divided_among_threads_and_nothing_changes(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 600, generator=generator).to(dtype)
    a = torch.randn(9 * 16, 600, generator=generator).to(dtype)
    b = torch.randn(9 * 16, 1500, generator=generator).to(dtype)
    groups = RowGroups.of([(Region(16 * i, 16 * i + 16), [i]) for i in range(9)])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernel(dtype).product(x, a, b, groups))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("instructions", Instructions)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.3895e38])
def test_what_is_no_number_stays_none(value, instructions):
    x = torch.tensor([[value]], dtype=torch.bfloat16)
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    rows = kernel(torch.bfloat16, instructions)
    ours = rows.product(x, one, one, RowGroups.of([(Region(0, 1), [0])]))
    torch.testing.assert_close(ours, x, equal_nan=True)


@pytest.mark.parametrize("instructions", Instructions)
def test_what_a_group_does_not_have_is_not_read(instructions):
    """Ranks and outputs beside those of a group may be anything."""
    a, b = (torch.full((5, 40), torch.nan, dtype=torch.bfloat16) for _ in range(2))
    a[1:4], b[1:4] = 0.5, 0.25
    x = torch.ones(1, 40, dtype=torch.bfloat16)
    rows = kernel(torch.bfloat16, instructions)
    ours = rows.product(x, a, b, RowGroups.of([(Region(1, 4), [0])]))
    assert (ours == 3 * 20 * 0.25).all()


@pytest.mark.parametrize("instructions", Instructions)
def test_sums_are_rounded_to_the_nearest_bfloat16_and_ties_to_even(instructions):
    x = torch.tensor([[1.0]], dtype=torch.bfloat16)
    # Two ranks that add up to what lies between, or halfway between, two bfloat16 numbers.
    values = torch.tensor([[1.0, 1.0, 1.0], [2**-8, 3 * 2**-8, 2**-7]])
    a = torch.ones(2, 1, dtype=torch.bfloat16)
    b = values.to(torch.bfloat16)
    rows = kernel(torch.bfloat16, instructions)
    ours = rows.product(x, a, b, RowGroups.of([(Region(0, 2), [0])]))
    assert torch.equal(ours[0], values.sum(0).to(torch.bfloat16))


def test_rows_that_do_not_lie_together_are_read_as_they_are():
    x = torch.randn(4, 6).T
    a, b = torch.randn(2, 4), torch.randn(2, 3)
    groups = [(Region(0, 2), [1, 3])]
    ours = kernel(torch.float32).product(x, a, b, RowGroups.of(groups))
    torch.testing.assert_close(ours, expected(x, a, b, groups), atol=1e-5, rtol=1e-5)


def test_it_is_for_few_rows_without_gradients():
    few, many = torch.zeros(64, 1), torch.zeros(65, 1)
    rows = kernel(torch.float32)
    assert rows.takes(few)
    assert not rows.takes(many)
    assert not rows.takes(few.bfloat16()), "it would read them as what they are not"
    few.requires_grad_()
    assert not rows.takes(few)
    with torch.no_grad():
        assert rows.takes(few)


def test_it_is_for_processors_and_two_dtypes():
    assert NativeRows.open(torch.float16, CPU) is None
    assert NativeRows.open(torch.float32, torch.device("cuda")) is None


def test_a_file_that_is_no_library_is_none(tmp_path):
    assert open_kernels(tmp_path / "missing.so") is None
    file = tmp_path / "native.so"
    file.write_text("no library")
    assert open_kernels(file) is None
