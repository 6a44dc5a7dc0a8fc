"""Sequences that wait for blocks and a slot, and who of them is next.

Plain Python, on the engine thread.
"""

import math
from bisect import insort
from collections.abc import Iterator

from hyprstream.engine.sequence import SequenceState, by_rank


class WaitingLine:
    """Sequences by rank, those that were overtaken too often before all others.

    Invariant, checked by `test_waiting.py`: once as many sequences have started as waited
    before a sequence, and `max_overtakes` more, nothing that came later starts before it.

    Attributes:
        num_starts: How many sequences have left the line to run.
        is_stuck: All that wait were tried, and nothing has changed since.
    """

    def __init__(self, max_overtakes: int) -> None:
        self._max_overtakes = max_overtakes
        self._states: list[SequenceState] = []
        self._next_overdue = math.inf  # no sequence becomes urgent earlier
        self.num_starts = 0
        self.is_stuck = False

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[SequenceState]:
        return iter(self._states)

    @property
    def overdue_at(self) -> int:
        """The number of starts at which a sequence that comes now becomes urgent."""
        return self.num_starts + len(self._states) + self._max_overtakes

    def join(self, state: SequenceState) -> None:
        """Let a sequence wait, for the first time or again."""
        insort(self._states, state, key=by_rank)
        if not state.is_urgent:
            self._next_overdue = min(self._next_overdue, state.overdue_at)
        self.is_stuck = False

    def leave(self, state: SequenceState, *, to_run: bool) -> None:
        """Take out a sequence that starts, or that has ended."""
        self._states.remove(state)
        self.num_starts += to_run

    def in_order(self) -> Iterator[SequenceState]:
        """Yield the sequences in the order in which they should start.

        They may leave meanwhile. If another becomes urgent by that, it begins again.
        """
        begins = True
        while begins:
            begins = False
            self._press()
            for state in tuple(self._states):
                yield state
                if self.num_starts >= self._next_overdue:
                    begins = True
                    break

    def _press(self) -> None:
        """Put those that were overtaken too often before all others."""
        if self.num_starts < self._next_overdue:
            return
        patient = [state for state in self._states if not state.is_urgent]
        for state in patient:
            state.is_urgent = state.overdue_at <= self.num_starts
        self._states.sort(key=by_rank)
        self._next_overdue = min(
            (state.overdue_at for state in patient if not state.is_urgent), default=math.inf
        )
