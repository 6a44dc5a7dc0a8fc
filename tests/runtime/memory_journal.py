"""A journal without a disk."""

from hyprstream.runtime.journal_rows import Action, Decision
from hyprstream.train.buffer import Fate
from tests.train.logs import FakeLog


class MemoryJournal(FakeLog):
    """Samples and decisions, in memory."""

    def __init__(self):
        super().__init__()
        self.kept: list[Decision] = []
        self.actions: list[Action] = []

    def decide(self, decision: Decision, fate: Fate | None = None) -> int:
        self.kept.append(decision)
        self.actions.append(decision.action)
        if fate is not None:
            self.end(decision.samples, fate)
        return len(self.kept) - 1

    def resolve(self, number: int, action: Action, fate: Fate | None = None) -> None:
        self.actions[number] = action
        if fate is not None:
            self.end(self.kept[number].samples, fate)

    def decisions(self) -> list[Decision]:
        return self.kept
