"""Guess the tokens that come next from where the same words stood before.

Prompt lookup (https://github.com/apoorvumang/prompt-lookup-decoding): find the last tokens
of a sequence earlier in it and propose what followed there. The model checks all guesses in
one step; a wrong one costs some arithmetic, never correctness. Answers that quote, edit or
repeat gain most.

Plain Python, on the engine thread.
"""

from collections.abc import Sequence

_LONGEST, _SHORTEST = 3, 2  # one common token alone is found everywhere and predicts little
_LONGEST_PAUSE = 64


class Drafter:
    """Guesses for one sequence, and learns how well that goes.

    After guesses that were all wrong it pauses, twice as long each time; after guesses that
    were all right it guesses twice as many.

    Invariant, checked by `test_drafts_properties.py`: guesses follow the latest earlier place
    of the sequence's last three tokens, or else of its last two.
    """

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._num_drafts = min(2, max_drafts)
        self._num_misses = 0
        self._pause = 0
        self._followers: dict[tuple[int, ...], int] = {}  # last tokens -> where the next one is
        self._num_indexed = 0

    def propose(self, token_ids: Sequence[int], limit: int) -> tuple[int, ...]:
        """Guess at most `limit` tokens that follow.

        Args:
            token_ids: The sequence: longer at each call, otherwise as it was.
            limit: Most guesses that are of use.
        """
        if self._pause > 0:
            self._pause -= 1
            return ()
        num_drafts = min(self._num_drafts, limit)
        if num_drafts <= 0:
            return ()
        self._index(token_ids)
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            follower = self._followers.get(tuple(token_ids[-length:]))
            if follower is not None:
                # What follows may run into the end: then it goes round, and so do the guesses.
                period = len(token_ids) - follower
                return tuple(token_ids[follower + i % period] for i in range(num_drafts))
        return ()

    def learn(self, num_drafts: int, num_right: int) -> None:
        """Take note of how many guesses of one step were right."""
        if num_right == num_drafts:
            self._num_drafts = min(2 * self._num_drafts, self._max_drafts)
        else:
            self._num_drafts = max(1, num_right)
        if num_right > 0:
            self._num_misses = 0
        else:
            self._num_misses += 1
            self._pause = min(2**self._num_misses, _LONGEST_PAUSE)

    def _index(self, token_ids: Sequence[int]) -> None:
        # The last token has no follower yet.
        for follower in range(max(self._num_indexed, 1), len(token_ids)):
            for length in range(_SHORTEST, min(_LONGEST, follower) + 1):
                self._followers[tuple(token_ids[follower - length : follower])] = follower
        self._num_indexed = len(token_ids)
