"""An approximate index of a table, with faiss: rows in cells, of which few are looked at.

Half as many bytes as the table: each row as half precision beside the cell that it is in. What
it finds is measured again with the table's own numbers. The file is mapped, as the table is.
"""

import errno
import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptVectorsError, UnsupportedError
from hyprstream.vectors.search import Hits, Piece, nearest, unit

_TRAINED_PER_CELL = 40  # rows from which the centre of each cell is learnt, in few passes
_PASSES = 6
_ASKED = 64  # rows with which the recall is measured
_K = 10  # of the neighbours that it is measured by
_WANTED_RECALL = 0.95  # of rows of the table; strangers were found a little better
_SEED = 0
_MORE = 4  # candidates for each row that is wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """An index of the first rows of a table.

    Attributes:
        file: Its name.
        size_bytes: Length of the file.
        num_rows: How many rows it knows, from the first.
        num_trained: How many there were when its cells were chosen.
        probes: Cells that a search looks at.
        recall: Share of the ten nearest others that it finds, of 64 rows of the table.
    """

    file: str
    size_bytes: int
    num_rows: int
    num_trained: int
    probes: int
    recall: float

    def plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def has_library() -> bool:
    """Tell whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def build(pieces: Sequence[Piece], dim: int, file: Path) -> IndexEntry:
    """Build an index of all rows, measure it, and write it.

    Args:
        pieces: The rows.
        dim: Length of the vectors.
        file: Where it goes.

    Raises:
        UnsupportedError: faiss is not installed.
    """
    faiss = _library()
    num_rows = _end(pieces)
    # Twice the root: of more cells fewer rows are looked at, and building takes longer.
    num_cells = 1 << max(round(np.log2(max(num_rows, 1)) / 2 + 1), 4)
    index = faiss.index_factory(dim, f"IVF{num_cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(_SEED).permutation(num_rows)[: num_cells * _TRAINED_PER_CELL]
    index.cp.niter = _PASSES
    index.train(unit(rows_at(pieces, np.sort(chosen))))
    return _filled(index, pieces, 0, num_rows, file)


def extend(old: Path, entry: IndexEntry, pieces: Sequence[Piece], file: Path) -> IndexEntry:
    """Write an index with the rows that it did not know; the cells stay.

    Raises:
        UnsupportedError: faiss is not installed.
        CorruptVectorsError: The old one is damaged.
    """
    index = _read(old, entry, mapped=False)
    return _filled(index, pieces, entry.num_rows, entry.num_trained, file)


class VectorIndex:
    """An index that is open. Safe to use from any thread.

    Raises:
        UnsupportedError: faiss is not installed.
        CorruptVectorsError: The file is damaged.
    """

    def __init__(self, file: Path, entry: IndexEntry) -> None:
        self.entry = entry
        self._index = _read(file, entry, mapped=True)

    def search(self, pieces: Sequence[Piece], queries: NDArray[np.float32], k: int) -> Hits:
        """Find the rows most like each query: those it knows by cells, the rest one by one.

        Args:
            pieces: All rows of the table.
            queries: Float32, one row per query.
            k: At least 1.
        """
        found = _candidates(self._index, unit(queries), _MORE * k, self.entry.probes)
        rest = [
            _from(piece, self.entry.num_rows) for piece in pieces if piece.end > self.entry.num_rows
        ]
        newest = nearest(rest, queries, k) if rest else None
        lines = []
        for i, query in enumerate(queries):
            ids = found[i][found[i] >= 0]
            if newest is not None:
                ids = np.concatenate([ids, newest.ids[i]])
            lines.append(_ranked(pieces, np.unique(ids), query, k))
        if any(len(ids) < min(k, _end(pieces)) for ids, _ in lines):
            return nearest(pieces, queries, k)  # the cells that were looked at had too few
        return Hits(np.stack([ids for ids, _ in lines]), np.stack([s for _, s in lines]))


def rows_at(pieces: Sequence[Piece], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the vectors of some rows."""
    starts = np.array([piece.first for piece in pieces])
    owners = np.searchsorted(starts, ids, side="right") - 1
    rows = np.empty((len(ids), pieces[0].vectors.shape[1]), np.float32)
    for owner in np.unique(owners):
        here = owners == owner
        rows[here] = pieces[owner].vectors[ids[here] - starts[owner]]
    return rows


def _filled(
    index: Any, pieces: Sequence[Piece], first: int, num_trained: int, file: Path
) -> IndexEntry:
    for piece in pieces:
        if piece.end > first:
            index.add(unit(_from(piece, first).vectors))
    probes, recall = _measured(index, pieces)
    try:
        _library().write_index(index, str(file))
    except RuntimeError as error:
        raise OSError(errno.EIO, f"faiss cannot write it: {error}") from error
    return IndexEntry(
        file=f"{file.stem}.faiss",
        size_bytes=file.stat().st_size,
        num_rows=int(index.ntotal),
        num_trained=num_trained,
        probes=probes,
        recall=round(recall, 4),
    )


def _measured(index: Any, pieces: Sequence[Piece]) -> tuple[int, float]:
    """Find how many cells are enough; return that and the share of neighbours that it finds."""
    chosen = np.random.default_rng(_SEED + 1).permutation(index.ntotal)[:_ASKED]
    queries = rows_at(pieces, np.sort(chosen))
    wanted = nearest(pieces, queries, _K + 1).ids
    probes, recall = 1, 0.0
    while probes <= index.nlist:
        found = _candidates(index, unit(queries), _MORE * (_K + 1), probes)
        same = sum(
            len(np.intersect1d(row, there)) for row, there in zip(wanted, found, strict=True)
        )
        # The row itself is always found: it tells nothing.
        recall = (same - len(queries)) / max(wanted.size - len(queries), 1)
        if recall >= _WANTED_RECALL:
            break
        probes += max(probes // 3, 1)
    return min(probes, index.nlist), recall


def _candidates(index: Any, queries: NDArray[np.float32], k: int, probes: int) -> NDArray[np.int64]:
    params = _library().SearchParametersIVF(nprobe=probes)
    ids: NDArray[np.int64] = index.search(queries, k, params=params)[1]
    return ids


def _ranked(
    pieces: Sequence[Piece], ids: NDArray[np.int64], query: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not len(ids):
        return ids, np.empty(0, np.float32)
    scores = unit(rows_at(pieces, ids)) @ unit(query[None])[0]
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def _from(piece: Piece, first: int) -> Piece:
    """Return what of a piece does not come before a row."""
    skipped = max(first - piece.first, 0)
    return Piece(piece.vectors[skipped:], piece.norms[skipped:], piece.first + skipped)


def _end(pieces: Iterable[Piece]) -> int:
    return max((piece.end for piece in pieces), default=0)


def _read(file: Path, entry: IndexEntry, *, mapped: bool) -> Any:
    faiss = _library()
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped else 0
    try:
        if file.stat().st_size != entry.size_bytes:
            raise CorruptVectorsError(file, f"it is not {entry.size_bytes} bytes long")
        index = faiss.read_index(str(file), flags)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:
        raise CorruptVectorsError(file, f"it is no index: {error}"[:200]) from error
    if index.ntotal != entry.num_rows:
        raise CorruptVectorsError(file, f"it has {index.ntotal} rows, not {entry.num_rows}")
    return index


def _library() -> Any:
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "an index needs faiss, which is not installed",
            hint="Install it with `pip install 'hyprstream[index]'`.",
        ) from error
