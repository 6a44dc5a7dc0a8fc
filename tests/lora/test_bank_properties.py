"""Whatever was written where and when, a slot adds what was written to it last."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyprstream.lora.weights import LoraWeights
from tests.lora.adapters import dense, make_bank, random_kinds

LINEARS = {"q": (5, 4), "k": (3, 4), "v": (3, 6)}
NUM_SLOTS, MAX_RANK = 4, 5
KINDS = ["low_rank", "sparse", "tiny"]
# What all slots would take at the highest rank, once for each kind, and tiny adapters' cores.
OF_A_KIND = NUM_SLOTS * MAX_RANK * 4 * sum(i + o for o, i in LINEARS.values())
BOUND = len(KINDS) * OF_A_KIND + NUM_SLOTS * MAX_RANK**2 * 4 * len(LINEARS)
X = {
    path: torch.randn(16, width, generator=torch.Generator().manual_seed(7))
    for path, (_, width) in LINEARS.items()
}
SLOTS = st.integers(1, NUM_SLOTS)


class BankMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bank = make_bank(LINEARS, num_slots=NUM_SLOTS, max_rank=MAX_RANK)
        self.held: dict[int, LoraWeights] = {}
        self.slots = [0, 1, 2, 3, 4, 4, 2, 0]

    @rule(
        slot=SLOTS,
        paths=st.sets(st.sampled_from(sorted(LINEARS)), min_size=1),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
        ranks=st.lists(st.integers(1, MAX_RANK), min_size=1, max_size=3),
        seed=st.integers(0, 1000),
    )
    def write(self, slot, paths, kinds, ranks, seed):
        chosen = {path: LINEARS[path] for path in sorted(paths)}
        self.held[slot] = random_kinds(chosen, kinds, ranks, seed)
        self.bank.write(slot, self.held[slot])

    @rule(slot=SLOTS)
    def clear(self, slot):
        self.held.pop(slot, None)
        self.bank.clear(slot)

    @rule(slots=st.lists(st.integers(0, NUM_SLOTS), min_size=1, max_size=16))
    def mix(self, slots):
        self.slots = slots

    @invariant()
    def each_row_gets_what_its_slot_holds(self):
        view = self.bank.view(self.slots)
        assert (view is None) == (not self.held.keys() & set(self.slots))
        for path, (outputs, _) in LINEARS.items():
            x = X[path][: len(self.slots)]
            ours = None if view is None else view.delta(path, x)
            theirs = torch.zeros(len(x), outputs, dtype=torch.float64)
            for row, slot in enumerate(self.slots):
                if slot in self.held and path in self.held[slot].modules:
                    change = dense(self.held[slot].modules[path])
                    theirs[row] = change @ x[row].double()
                elif ours is not None and slot not in self.held:
                    minus_zero = torch.full_like(ours[row], -0.0)
                    assert torch.equal(ours[row].view(torch.int32), minus_zero.view(torch.int32))
                elif ours is not None:
                    assert ours[row].abs().sum() == 0, "what a slot lacks adds exactly nothing"
            if ours is None:
                assert not theirs.any()
            else:
                torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)

    @invariant()
    def memory_is_bounded(self):
        assert self.bank.size_bytes <= BOUND


TestBank = BankMachine.TestCase
TestBank.settings = settings(max_examples=30, deadline=None)
