"""One table of vectors: immutable Arrow files that are mapped, and what they have in common.

A `VectorTable` is what the table was when it was looked at; `VectorStore` makes new ones.
Reading maps the files: memory is taken by what is looked at and goes when others need it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hyprstream.errors import CorruptVectorsError, InvalidRequestError
from hyprstream.vectors.index import IndexEntry, VectorIndex, has_library
from hyprstream.vectors.search import Hits, Piece, nearest

log = logging.getLogger(__name__)

MAX_DIM = 65_536
MOST_APPROXIMATE = 100
"""Searches for more rows than this do not use the index: it is measured by ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What the vectors of a table were made with; empty where somebody else made them.

    Attributes:
        model: Reference of the model.
        adapter: Name of the adapter, if there was one.
        version: Version of that adapter.
        pooling: How states became vectors.
    """

    model: str = ""
    adapter: str = ""
    version: str = ""
    pooling: str = ""

    def plain(self) -> dict[str, str]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a table.

    Attributes:
        file: Its name.
        num_rows: How many vectors it holds.
        size_bytes: Its length.
    """

    file: str
    num_rows: int
    size_bytes: int


def stored_schema(dim: int) -> pa.Schema:
    """Return the columns of a table's files."""
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("key", pa.utf8()),
            pa.field("text", pa.utf8()),
            pa.field("metadata", pa.utf8()),
            pa.field("embedding", vector, nullable=False),
            pa.field("norm", pa.float32(), nullable=False),
        ]
    )


class VectorTable:
    """The rows of a table at one moment.

    Attributes:
        name: What it is called.
        dim: Length of its vectors.
        stamp: What they were made with.
        segments: Its files, the oldest first.
        id: Tells it from others of the same name, before and after it.
        index: Finds rows without looking at all; None where there is none.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        dim: int,
        stamp: Stamp,
        segments: Sequence[Segment],
        *,
        id: str = "",  # noqa: A002
        index: IndexEntry | None = None,
    ) -> None:
        self.id = id
        self.index = index
        self.name = name
        self.dim = dim
        self.stamp = stamp
        self.segments = tuple(segments)
        self._folder = folder

    def __len__(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @property
    def size_bytes(self) -> int:
        """Length of its files."""
        return sum(segment.size_bytes for segment in self.segments)

    @property
    def schema(self) -> pa.Schema:
        """Columns of `batches`."""
        return stored_schema(self.dim)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Return the rows, as they lie in the files."""
        for reader in self._readers:
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)

    def arrow(self) -> pa.Table:
        """Return all rows without copying any."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def map(self) -> None:
        """Map the files now: from here on it does not matter if somebody removes them.

        Raises:
            FileNotFoundError: One is gone already.
            CorruptVectorsError: One is damaged.
        """
        assert len(self._readers) == len(self.segments), "a file was forgotten"
        _ = self.opened_index

    def rows(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return what is known of some rows, their vectors and norms left out."""
        if not ids:
            return []
        columns = self.arrow().select(["id", "key", "text", "metadata"])
        rows: list[dict[str, Any]] = columns.take(pa.array(ids, pa.int64())).to_pylist()
        return rows

    def vector(self, key: str) -> NDArray[np.float32] | None:
        """Return the newest vector with this key."""
        found = None
        for batch in self.batches():
            keys = batch.column("key")
            if keys.null_count < len(keys):
                rows = np.flatnonzero(np.asarray(keys.to_numpy(zero_copy_only=False)) == key)
                if len(rows):
                    found = vectors_of(batch)[rows[-1]]
        return found

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool = False) -> Hits:
        """Find the rows most like each query, by cosine similarity.

        With an index, and unless it shall be exact, a few of them may be missed. Of more than
        100 rows none is.

        Raises:
            InvalidRequestError: The queries have another length than the vectors, or hold
                something that is no number; or `k` is out of range.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            shape = queries.shape[-1] if queries.ndim else 0
            raise InvalidRequestError(
                f"table {self.name!r} holds vectors of {self.dim} numbers, the query has {shape}",
                hint="Embed the query with the model that made the table.",
            )
        if not np.isfinite(queries).all():
            raise InvalidRequestError("the query holds something that is no number")
        if not 1 <= k <= 10_000:
            raise InvalidRequestError(f"k is {k}", hint="Choose 1 to 10000.")
        asked = np.ascontiguousarray(queries, np.float32)
        index = None if exact or k > MOST_APPROXIMATE else self.opened_index
        if index is not None:
            return index.search(self.pieces, asked, k)
        return nearest(self.pieces, asked, k)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Return the vectors, as they lie in the files."""
        pieces = []
        first = 0
        for batch in self.batches():
            norms = batch.column("norm").to_numpy(zero_copy_only=True)
            pieces.append(Piece(vectors_of(batch), norms, first))
            first += batch.num_rows
        return tuple(pieces)

    @cached_property
    def opened_index(self) -> VectorIndex | None:
        """The index; None where there is none, none that is of use, or no faiss."""
        if self.index is None or not has_library():
            return None
        try:
            return VectorIndex(self._folder / self.index.file, self.index)
        except FileNotFoundError:
            raise
        except CorruptVectorsError as error:
            log.warning("all rows are looked at instead: %s", error)
            return None

    @cached_property
    def _readers(self) -> list[Any]:
        return [self._mapped(segment) for segment in self.segments]

    def _mapped(self, segment: Segment) -> Any:
        file = self._folder / segment.file
        try:
            if file.stat().st_size != segment.size_bytes:
                raise CorruptVectorsError(file, f"it is not {segment.size_bytes} bytes long")
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            if not reader.schema.equals(self.schema):
                raise CorruptVectorsError(file, "its columns are others")
            num_rows = 0
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                batch.validate()
                num_rows += batch.num_rows
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise CorruptVectorsError(file, str(error)) from error
        if num_rows != segment.num_rows:
            raise CorruptVectorsError(file, f"it has {num_rows} rows, not {segment.num_rows}")
        return reader


def vectors_of(batch: pa.RecordBatch) -> NDArray[np.float32]:
    """Return the vectors of a batch, one per row, without copying them."""
    column = batch.column("embedding")
    dim = column.type.list_size
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(-1, dim)
