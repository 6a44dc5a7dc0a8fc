"""Work that is done a piece at a time, so that requests can be served between two pieces."""

from collections.abc import Generator
from typing import Generic, TypeVar

from hyprstream.train.backward import learning

PIECE_PRODUCTS = 1 << 27
"""Multiplications with weights in one piece, about (docs/decisions/0007-slices.md)."""

Result = TypeVar("Result")

Pieces = Generator[None, None, Result]
"""A generator that yields after each piece of its work, and returns what came of it.

No context may be open while it yields: what runs in between has modes of its own.
"""


class StepwisePass(Generic[Result]):
    """A pass over samples in pieces.

    Between two pieces it holds what it has computed so far, and nothing else.

    Args:
        pieces: Does the work.
    """

    def __init__(self, pieces: Pieces[Result]) -> None:
        self._pieces = pieces
        self._results: list[Result] = []
        self._num_pieces = 0

    @property
    def is_done(self) -> bool:
        """Tell whether all is done."""
        return bool(self._results)

    @property
    def num_pieces(self) -> int:
        """Pieces that were done."""
        return self._num_pieces

    def result(self) -> Result:
        """Return what came of it, once all is done."""
        assert self._results, "the pass is not done"
        return self._results[0]

    def advance(self) -> bool:
        """Do one piece; tell whether all is done.

        Raises:
            HyprstreamError: As the work does; the pass is of no use then.
        """
        assert not self._results, "the pass is done"
        with learning():
            try:
                next(self._pieces)
            except StopIteration as end:
                self._results.append(end.value)
        self._num_pieces += 1
        return self.is_done

    def close(self) -> None:
        """Give up what is not done."""
        self._pieces.close()

    def finish(self) -> Result:
        """Do all that is left, and return what came of it; errors as in `advance`."""
        while not self.is_done:
            self.advance()
        return self.result()
