"""For every sequence and every way in which it grows."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.engine.drafts import Drafter


def _lookup(token_ids: list[int], num_drafts: int) -> tuple[int, ...]:
    """Brute force: walk back until the last tokens stand there, and copy from there on."""
    for length in (3, 2):
        for follower in range(len(token_ids) - 1, length - 1, -1):
            if token_ids[follower - length : follower] == token_ids[-length:]:
                grown = list(token_ids)
                for i in range(num_drafts):
                    grown.append(grown[follower + i])
                return tuple(grown[len(token_ids) :])
    return ()


@settings(deadline=None, max_examples=200)
@given(
    pieces=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8),
    limit=st.integers(1, 5),
)
def test_guesses_follow_the_latest_earlier_place(pieces, limit):
    drafter, token_ids = Drafter(2), []
    for piece in pieces:
        token_ids += piece
        assert drafter.propose(token_ids, limit) == _lookup(token_ids, min(limit, 2))
