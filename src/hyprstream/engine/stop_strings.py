"""Cut a stream of text before the first stop string, holding back no more than is needed.

The first stop string is the one that is completed first; of several completed by the same
character, the longest. That depends on the text alone, never on the pieces it came in, and
it lets generation end at once: "bc" ends "abc" even where "abcd" is a stop string as well.

Text only: neither tokens nor torch.
"""

from collections import deque
from collections.abc import Sequence

_ROOT = 0


class StopStrings:
    """Watches one stream for stop strings: push pieces, emit what comes back.

    The state is a node of an Aho-Corasick automaton (doi:10.1145/360825.360855), that is the
    longest end of the text so far that begins a stop string. Exactly that end is held back.
    A stream costs time in proportion to its length, whatever the stop strings and pieces.

    Invariants, checked by `test_stop_strings_properties.py`: what was emitted is final; all
    that is held back may yet become a stop string; the pieces do not matter.

    Example:
        >>> stops = StopStrings(["###"])
        >>> stops.push("Yes. #"), stops.push("1! ##"), stops.push("#")
        ('Yes. ', '#1! ', '')
        >>> stops.matched
        '###'
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        """Build the automaton.

        Args:
            stops: Strings that end the text; none of them empty.
            include_stop: Emit the stop string that was found as well.
        """
        assert all(stops), "an empty stop string is found everywhere"
        self._include_stop = include_stop
        self._matched: str | None = None
        self._node = _ROOT
        # One entry per node; a node stands for a beginning of one or more stop strings.
        self._next: list[dict[str, int]] = [{}]
        self._depth: list[int] = [0]
        self._stop: list[str] = [""]  # the first stop string with this beginning
        self._found: list[str | None] = [None]  # longest stop string that ends here
        self._shorter: list[int] = [_ROOT]  # longest proper end of the text that is a node too
        for stop in stops:
            self._insert(stop)
        self._link()

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text; None while there is none."""
        return self._matched

    def push(self, piece: str) -> str:
        """Take the next piece and return the text that is now certain.

        After a match every further piece is dropped.
        """
        if self._matched is not None:
            return ""
        held = self._node
        node = held
        for index, char in enumerate(piece):
            while node != _ROOT and char not in self._next[node]:
                node = self._shorter[node]
            node = self._next[node].get(char, _ROOT)
            found = self._found[node]
            if found is not None:
                self._matched, self._node = found, _ROOT
                num_kept_back = 0 if self._include_stop else len(found)
                return self._release(held, piece[: index + 1], num_kept_back)
        self._node = node
        return self._release(held, piece, self._depth[node])

    def finish(self) -> str:
        """Return what was held back, at the end of a text without a stop string."""
        held, self._node = self._node, _ROOT
        return self._release(held, "", 0)

    def _release(self, held: int, piece: str, num_kept_back: int) -> str:
        """Return the text of node `held` and `piece`, less so many characters at the end.

        The text held back is copied only as it is released: a long one stays cheap.
        """
        depth = self._depth[held]
        length = depth + len(piece) - num_kept_back
        return self._stop[held][: min(depth, length)] + piece[: max(0, length - depth)]

    def _insert(self, stop: str) -> None:
        node = _ROOT
        for length, char in enumerate(stop, start=1):
            if char not in self._next[node]:
                self._next[node][char] = len(self._next)
                self._next.append({})
                self._depth.append(length)
                self._stop.append(stop)
                self._found.append(None)
                self._shorter.append(_ROOT)
            node = self._next[node][char]
        self._found[node] = stop

    def _link(self) -> None:
        queue = deque(self._next[_ROOT].values())
        while queue:
            node = queue.popleft()
            for char, child in self._next[node].items():
                shorter = self._shorter[node]
                while shorter != _ROOT and char not in self._next[shorter]:
                    shorter = self._shorter[shorter]
                self._shorter[child] = self._next[shorter].get(char, _ROOT)
                # Shorter nodes come first, so theirs is final; our own is longer and wins.
                self._found[child] = self._found[child] or self._found[self._shorter[child]]
                queue.append(child)
