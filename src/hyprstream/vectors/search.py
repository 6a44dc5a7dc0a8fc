"""The rows of a table that are most like a vector: exact, one product per piece of the table.

NumPy alone. What is held besides the table are the scores of one piece.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_QUERIES = 64  # at once: bounds the scores of one piece


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a table.

    Attributes:
        vectors: Float32, one row per vector.
        norms: Length of each.
        first: Number of the first row.
    """

    vectors: NDArray[np.float32]
    norms: NDArray[np.float32]
    first: int

    @property
    def end(self) -> int:
        """Number of the row after the last."""
        return self.first + len(self.vectors)


@dataclass(frozen=True, slots=True)
class Hits:
    """What was found for each query, the best first.

    Attributes:
        ids: Numbers of rows, one line per query.
        scores: Cosine similarities; those of a vector without length are 0.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


def nearest(pieces: Iterable[Piece], queries: NDArray[np.float32], k: int) -> Hits:
    """Find the `k` rows with the largest cosine similarity to each query.

    Of equal scores the earlier row comes first.

    Args:
        pieces: The table; walked through once for every 64 queries, so a list where there
            are more.
        queries: Float32, one row per query.
        k: At least 1. Fewer are returned if the table has fewer rows.
    """
    assert k >= 1, "a search for nothing"
    asked = unit(queries)
    parts = [asked[i : i + _MOST_QUERIES] for i in range(0, len(asked), _MOST_QUERIES)]
    table = pieces if len(parts) <= 1 else list(pieces)
    found = [_nearest(table, part, k) for part in parts]
    if not found:
        return Hits(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))
    return Hits(
        np.concatenate([hits.ids for hits in found]),
        np.concatenate([hits.scores for hits in found]),
    )


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of length 1, and 0 for those without length."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    scaled: NDArray[np.float32] = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _nearest(pieces: Iterable[Piece], queries: NDArray[np.float32], k: int) -> Hits:
    ids = [np.empty(0, np.int64) for _ in queries]
    scores = [np.empty(0, np.float32) for _ in queries]
    for piece in pieces:
        # A single query is a product with a vector, which needs no copy of the piece.
        product = (
            (piece.vectors @ queries[0])[None]
            if len(queries) == 1
            else np.ascontiguousarray((piece.vectors @ queries.T).T)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            product /= piece.norms
        if not (piece.norms > 0).all():
            product[:, piece.norms == 0] = 0
        for i, line in enumerate(product):
            ids[i], scores[i] = _merged(ids[i], scores[i], line, piece.first, k)
    return Hits(np.stack(ids), np.stack(scores))


def _merged(
    ids: NDArray[np.int64],
    scores: NDArray[np.float32],
    line: NDArray[np.float32],
    first: int,
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Put the scores of one piece to the best so far."""
    rows = np.flatnonzero(line > scores[-1]) if len(scores) == k else np.arange(len(line))
    if len(rows) > 4 * k:  # `argpartition` breaks ties anyhow: keep all that equal the last
        last = np.partition(line[rows], -k)[-k]
        rows = rows[line[rows] >= last]
    all_ids = np.concatenate([ids, first + rows])
    all_scores = np.concatenate([scores, line[rows]])
    order = np.lexsort((all_ids, -all_scores))[:k]
    return all_ids[order], all_scores[order]
