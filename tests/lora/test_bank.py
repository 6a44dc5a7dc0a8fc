import pytest
import torch

from hyprstream.errors import IncompatibleAdapterError
from hyprstream.lora.bank import LoraBank
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from tests.lora.adapters import CPU, dense, make_bank, random_adapter, random_low_rank
from tests.lora.dense_kind import DenseDelta

LINEARS = {"q": (6, 4), "v": (3, 4), "refused": (2, 4)}
X = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def bank() -> LoraBank:
    return make_bank(LINEARS)


def adapter(seed: int, ranks=(2,), paths=("q", "v")) -> LoraWeights:
    return random_adapter({path: LINEARS[path] for path in paths}, ranks, seed)


def added(bank: LoraBank, path: str, slots: list[int], x=X) -> torch.Tensor:
    view = bank.view(slots)
    assert view is not None
    delta = view.delta(path, x)
    assert delta is not None
    return delta


def expected(weights: LoraWeights, path: str, rows: torch.Tensor) -> torch.Tensor:
    return (rows.double() @ dense(weights.modules[path]).T).float()


def test_a_batch_of_base_rows_has_no_view(bank):
    assert bank.view([0, 0]) is None
    bank.write(1, adapter(1))
    assert bank.view([0, 0]) is None
    assert bank.view([0, 2]) is None, "slot 2 is empty"
    bank.clear(1)
    assert bank.view([0, 1]) is None


def test_rows_of_several_slots_in_any_order_get_what_their_slot_adds(bank):
    adapters = {1: adapter(1, ranks=(3, 5)), 2: adapter(2), 3: adapter(3, ranks=(8,))}
    for slot, weights in adapters.items():
        bank.write(slot, weights)
    slots = [3, 1, 3, 2]
    for path in ("q", "v"):
        ours = added(bank, path, slots)
        for slot, row, x in zip(slots, ours, X, strict=True):
            torch.testing.assert_close(row, expected(adapters[slot], path, x))


def test_slots_may_come_as_a_tensor(bank):
    bank.write(2, adapter(2))
    view = bank.view(torch.tensor([0, 2, 2, 0]))
    assert view is not None
    torch.testing.assert_close(view.delta("q", X), added(bank, "q", [0, 2, 2, 0]))


def test_a_layer_that_no_adapter_of_the_batch_changes_gets_nothing(bank):
    bank.write(1, adapter(1, paths=("q",)))
    bank.write(2, adapter(2, paths=("v",)))
    view = bank.view([1, 0, 1, 0])
    assert view is not None
    assert view.delta("v", X) is None
    assert added(bank, "v", [1, 2, 1, 0])[0].tolist() == [0.0] * 3


def test_adding_to_rows_without_an_adapter_keeps_every_bit(bank):
    bank.write(1, adapter(1))
    y = torch.tensor([[0.0, -0.0, 1e-45]]).repeat(4, 1)
    ours = added(bank, "v", [0, 1, 0, 0])
    kept = (y + ours)[[0, 2, 3]]
    assert torch.equal(kept.view(torch.int32), y[[0, 2, 3]].view(torch.int32))


def test_chosen_rows_of_a_step_keep_their_slots(bank):
    first, second = adapter(1), adapter(2)
    bank.write(1, first)
    bank.write(2, second)
    view = bank.view([0, 1, 2, 0])
    assert view is not None
    rows = torch.tensor([2, 0, 1])
    chosen = view.select(rows)
    assert chosen is not None
    delta = chosen.delta("q", X[rows])
    assert delta is not None
    torch.testing.assert_close(delta[0], expected(second, "q", X[2]))
    torch.testing.assert_close(delta[2], expected(first, "q", X[1]))
    assert view.select(torch.tensor([3, 0])) is None


def test_an_adapter_of_another_model_is_refused_with_path_and_shapes(bank):
    bank.write(1, adapter(1))
    before = added(bank, "q", [1] * 4)
    generator = torch.Generator().manual_seed(0)
    wrong = LoraWeights({"q": random_low_rank((6, 5), 2, generator)})
    with pytest.raises(IncompatibleAdapterError, match=r"\(6, 5\) at q, the model has \(6, 4\)"):
        bank.write(1, wrong)
    unknown = LoraWeights({"k": random_low_rank((6, 4), 2, generator)})
    with pytest.raises(IncompatibleAdapterError, match=r"\(6, 4\) at k, the model has none"):
        bank.write(1, unknown)
    with pytest.raises(IncompatibleAdapterError, match="rank 9 at v, slots have room for 8"):
        bank.write(1, adapter(1, ranks=(8, 9)))
    assert torch.equal(added(bank, "q", [1] * 4), before), "the slot is as before"


def test_values_that_the_dtype_cannot_hold_are_refused():
    meta = torch.device("meta")
    bank = LoraBank(LINEARS, num_slots=1, max_rank=4, dtype=torch.float16, device=meta)
    large = LoraWeights({"q": LowRank(torch.full((4, 1), 7e4), torch.ones(1, 6))})
    with pytest.raises(IncompatibleAdapterError, match="at q are too large for float16"):
        bank.write(1, large)


def test_a_lower_rank_shows_nothing_of_what_the_slot_held_before(bank):
    bank.write(1, adapter(1, ranks=(8,)))
    mixed = adapter(2, ranks=(2, 5))
    bank.write(1, mixed)
    for path in ("q", "v"):
        torch.testing.assert_close(added(bank, path, [1] * 4), expected(mixed, path, X))


def test_slots_that_are_moved_together_keep_what_they_hold(bank):
    # 24 rows: the last write finds 10 of them free, in gaps of 3, 2 and 5.
    held = {}
    for slot, rank in ((1, 3), (2, 7), (3, 2), (1, 7), (3, 8)):
        held[slot] = adapter(rank, ranks=(rank,))
        bank.write(slot, held[slot])
    for slot, weights in held.items():
        torch.testing.assert_close(added(bank, "q", [slot] * 4), expected(weights, "q", X))


def test_memory_grows_with_what_is_written_up_to_a_bound(bank):
    assert bank.size_bytes == 0
    bank.write(1, adapter(1, ranks=(2,), paths=("q",)))
    assert bank.size_bytes == 4 * 2 * (6 + 4)
    for slot in (1, 2, 3, 1, 2, 3):
        bank.write(slot, adapter(slot, ranks=(8,)))
    assert bank.size_bytes == 4 * 3 * 8 * (6 + 4 + 3 + 4)


def test_a_bfloat16_model_gets_bfloat16_rows():
    bank = LoraBank(LINEARS, num_slots=1, max_rank=4, dtype=torch.bfloat16, device=CPU)
    weights = adapter(1)
    bank.write(1, weights)
    x = X.bfloat16()
    ours = added(bank, "q", [0, 1, 1, 1], x)
    assert ours.dtype == torch.bfloat16
    wanted = expected(weights, "q", x[1:]).bfloat16()
    torch.testing.assert_close(ours[1:], wanted, atol=1e-3, rtol=1e-2)


@torch.inference_mode()
def test_what_is_written_in_a_step_can_be_written_again_outside():
    bank = make_bank(LINEARS)
    bank.write(1, adapter(1))
    view = bank.view([1, 1, 0, 0])
    with torch.inference_mode(mode=False):
        assert view is not None
        view.delta("q", X)
        bank.write(1, adapter(2))
        x = X.clone().requires_grad_()
        added(bank, "q", [1, 1, 0, 0], x).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad[0], dense(adapter(2).modules["q"]).sum(0).float())
        assert x.grad[2:].abs().sum() == 0


def test_a_second_kind_of_delta_joins_without_a_change_of_the_bank(bank):
    change = torch.randn(6, 4, generator=torch.Generator().manual_seed(9))
    low_rank = adapter(1)
    bank.write(1, low_rank)
    bank.write(2, LoraWeights({"q": DenseDelta(change), "v": adapter(2).modules["v"]}))
    ours = added(bank, "q", [0, 1, 2, 2])
    assert ours[0].abs().sum() == 0
    torch.testing.assert_close(ours[1], expected(low_rank, "q", X[1]))
    torch.testing.assert_close(ours[2:], X[2:] @ change.T)
    view = bank.view([0, 1, 2, 2])
    assert view is not None
    chosen = view.select(torch.tensor([3, 1]))
    assert chosen is not None
    torch.testing.assert_close(chosen.delta("q", X[[3, 1]]), ours[[3, 1]])
    assert bank.size_bytes > change.nbytes


def test_an_adapter_with_one_refused_kind_changes_nothing(bank):
    bank.write(1, adapter(1))
    before = added(bank, "q", [1] * 4)
    other = adapter(2).modules["q"]
    with pytest.raises(IncompatibleAdapterError, match="dense delta is refused"):
        bank.write(1, LoraWeights({"q": other, "refused": DenseDelta(torch.ones(2, 4))}))
    assert torch.equal(added(bank, "q", [1] * 4), before)
