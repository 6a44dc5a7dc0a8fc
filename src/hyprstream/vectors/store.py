"""The tables of vectors of this machine: a folder for each.

A table is its `table.json`, which is replaced whole, and the files that this names: what a
killed process left is a file that no table names, and is removed by the next writer. One
process writes at a time; readers are not held up.
"""

import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from hyprstream.errors import (
    CorruptVectorsError,
    IncompatibleVectorsError,
    InvalidRequestError,
    TableExistsError,
    TableNotFoundError,
)
from hyprstream.files import hold, storage, sync_folder, write_atomic
from hyprstream.vectors.ahead import ahead
from hyprstream.vectors.description import content_of, described, same
from hyprstream.vectors.durable_file import DurableFile
from hyprstream.vectors.index import IndexEntry, build, extend, has_library
from hyprstream.vectors.rows import check_columns, check_dim, dim_of, joined, stored_batches
from hyprstream.vectors.table import Segment, Stamp, VectorTable, stored_schema

INDEX_ROWS = 100_000
"""Below this a search that looks at every row takes some milliseconds."""

_NEW_SHARE = 0.1  # of the rows, in no index, make a new one worth it
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MOST_SEGMENTS = 32
_SMALL_ROWS = 1 << 17  # files with fewer rows are joined when there are too many


class VectorStore:
    """Tables of vectors in one folder. Safe to use from any thread and several processes.

    Invariant, checked by `test_store.py`: whatever happens, a table is what it was before an
    operation or what it is after it.
    """

    def __init__(
        self,
        folder: Path,
        only: Callable[[Stamp], bool] | None = None,
        *,
        index_rows: int = INDEX_ROWS,
    ) -> None:
        """Take a folder; it is made with the first table.

        Args:
            folder: Where the tables are.
            only: Tells from what made its vectors whether a table exists for this store; None
                is every table.
            index_rows: Tables with fewer rows get no index.
        """
        self._index_rows = index_rows
        self._folder = folder
        self._only = only
        self._turn = threading.Lock()
        self._seen: dict[str, VectorTable] = {}

    def names(self) -> list[str]:
        """List the tables."""
        if not self._folder.is_dir():
            return []
        with storage(self._folder):
            found = [file.parent.name for file in self._folder.glob("*/table.json")]
        return sorted(name for name in found if _NAME.fullmatch(name) and self._is_shown(name))

    def shows(self, stamp: Stamp) -> bool:
        """Tell whether tables of such vectors exist for this store."""
        return self._only is None or self._only(stamp)

    def table(self, name: str) -> VectorTable:
        """Return a table as it is now.

        Raises:
            TableNotFoundError: There is none of this name.
            CorruptVectorsError: Its description is damaged.
        """
        while True:
            table = self._read(name)
            with self._turn:  # the same object for the same rows: its files stay mapped
                seen = self._seen.get(name)
                if seen and same(seen, table):
                    return seen
                try:
                    table.map()
                except FileNotFoundError as error:
                    if same(self._read(name), table):
                        raise CorruptVectorsError(table.name, f"a file is gone: {error}") from error
                    continue  # its files were joined just now
                self._seen[name] = table
                return table

    def create(self, name: str, dim: int, stamp: Stamp = Stamp()) -> VectorTable:  # noqa: B008 - frozen
        """Make an empty table.

        Raises:
            InvalidRequestError: The name or the length is out of range.
            TableExistsError: There is one.
        """
        _check_name(name)
        check_dim(dim)
        with self._writing():
            if (self._folder / name / "table.json").exists():
                raise TableExistsError(
                    f"a table of vectors is called {name!r}", hint="Drop it, or append to it."
                )
            table = VectorTable(name, self._folder / name, dim, stamp, (), id=secrets.token_hex(8))
            self._write(table)
        return self.table(name)

    def append(
        self, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], stamp: Stamp
    ) -> int:
        """Add rows; all of them are on the disk when this returns, or none.

        Args:
            name: The table.
            schema: Of the batches: `embedding`, and perhaps key, text and metadata.
            batches: The rows.
            stamp: What the vectors were made with.

        Returns:
            How many were added.

        Raises:
            TableNotFoundError: There is no such table.
            IncompatibleVectorsError: The table's vectors are of another length, or were made
                with something else.
            InvalidRequestError: The rows are of no use.
            StorageFullError: The disk is full.
        """
        check_columns(schema)
        given = dim_of(schema)
        with self._writing():
            table = self._read(name)
            if given not in {None, table.dim}:
                raise IncompatibleVectorsError(
                    f"table {name!r} holds vectors of {table.dim} numbers, these have {given}"
                )
            _check_stamp(table, stamp)
            with ahead(batches) as coming:
                rows = stored_batches(coming, table.dim, len(table))
                segment = self._write_segment(table, rows)
            if segment.num_rows:
                self._write(self._with(table, [*table.segments, segment]))
        self._compact_if_needed(name)
        return segment.num_rows

    def drop(self, name: str) -> None:
        """Remove a table.

        Raises:
            TableNotFoundError: There is none.
        """
        with self._writing():
            self._read(name)
            with storage(self._folder):
                (self._folder / name / "table.json").unlink()
                shutil.rmtree(self._folder / name)
            self._seen.pop(name, None)

    def compact(self, name: str) -> int:
        """Join the files of a table to one; return how many there were."""
        with self._writing():
            table = self._read(name)
            return self._join(table, table.segments)

    def wants_index(self, name: str) -> bool:
        """Tell whether a table is large, and many of its rows are in no index."""
        table = self.table(name)
        num_known = 0 if table.opened_index is None else table.opened_index.entry.num_rows
        return (
            has_library()
            and len(table) >= self._index_rows
            and len(table) - num_known >= _NEW_SHARE * len(table)
        )

    def index(self, name: str) -> IndexEntry:
        """Index the rows of a table; what is added meanwhile is searched row by row.

        An index is extended until there are twice as many rows as when its cells were chosen.

        Raises:
            UnsupportedError: faiss is not installed.
            InvalidRequestError: The table is so small that looking at all rows is quick.
            TableNotFoundError: There is no such table, or it was dropped meanwhile.
        """
        folder = self._folder / name
        self._read(name)
        with hold(folder / "index.lock", shared=False):
            table = self.table(name)
            if len(table) < self._index_rows:
                raise InvalidRequestError(
                    f"table {name!r} has {len(table)} rows",
                    hint=f"An index is of use from {self._index_rows} rows on.",
                )
            known = None if table.opened_index is None else table.opened_index.entry
            if known is not None and known.num_rows == len(table):
                return known
            with storage(folder):
                for left in folder.glob("*.part"):
                    left.unlink()
                return self._indexed(table, known, folder / f"{secrets.token_hex(8)}.part")

    def _indexed(self, table: VectorTable, old: IndexEntry | None, part: Path) -> IndexEntry:
        """Write an index of a table, and let the table name it."""
        pieces = table.pieces
        try:
            if old is None or len(table) >= 2 * old.num_trained:
                entry = build(pieces, table.dim, part)
            else:
                entry = extend(part.with_name(old.file), old, pieces, part)
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            with self._writing():
                now = self._read(table.name)
                if now.id != table.id:
                    raise _not_found(table.name)
                changed = self._with(now, now.segments)
                changed.index = entry
                part.rename(part.with_name(entry.file))
                self._write(changed)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return entry

    def _compact_if_needed(self, name: str) -> None:
        """Join the small files at the end of a table when there are many."""
        with self._writing():
            table = self._read(name)
            if len(table.segments) <= _MOST_SEGMENTS:
                return
            start = len(table.segments)
            while start and table.segments[start - 1].num_rows < _SMALL_ROWS:
                start -= 1
            self._join(table, table.segments[start:])

    def _join(self, table: VectorTable, last: Sequence[Segment]) -> int:
        if len(last) < 2:
            return len(last)
        kept = table.segments[: len(table.segments) - len(last)]
        tail = self._with(table, last)
        segment = self._write_segment(table, joined(tail.batches()))
        self._write(self._with(table, [*kept, segment]))
        return len(last)

    def _with(self, table: VectorTable, segments: Sequence[Segment]) -> VectorTable:
        # The rows stay in their order, and with them what an index says of the first of them.
        return VectorTable(
            table.name, self._folder / table.name, table.dim, table.stamp, segments,
            id=table.id, index=table.index,
        )  # fmt: skip

    def _write_segment(self, table: VectorTable, batches: Iterable[pa.RecordBatch]) -> Segment:
        """Write one file of a table; nobody knows of it yet."""
        folder = self._folder / table.name
        file = folder / f"{secrets.token_hex(8)}.arrow"
        num_rows = 0
        try:
            with (
                storage(folder),
                DurableFile(file) as stream,
                pa.ipc.new_file(stream, stored_schema(table.dim)) as writer,
            ):
                for batch in batches:
                    writer.write_batch(batch)
                    num_rows += batch.num_rows
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return Segment(file.name, num_rows, file.stat().st_size)

    def _write(self, table: VectorTable) -> None:
        """Make a table what it shall be, and remove files that it no longer names."""
        folder = self._folder / table.name
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "table.json", content_of(table), scratch=folder)
            sync_folder(self._folder)
            named = {segment.file for segment in table.segments}
            if table.index is not None:
                named.add(table.index.file)
            for file in (*folder.glob("*.arrow"), *folder.glob("*.faiss")):
                if file.name not in named:
                    file.unlink(missing_ok=True)  # whoever has it mapped keeps it

    def _read(self, name: str) -> VectorTable:
        table = self._described(name)
        if not self.shows(table.stamp):
            raise _not_found(name)
        return table

    def _is_shown(self, name: str) -> bool:
        if self._only is None:
            return True
        try:
            return self.shows(self._described(name).stamp)
        except (TableNotFoundError, CorruptVectorsError):
            return False  # dropped just now, or damaged: nobody can tell whose it is

    def _described(self, name: str) -> VectorTable:
        _check_name(name)
        file = self._folder / name / "table.json"
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            raise _not_found(name) from None
        except OSError as error:
            raise CorruptVectorsError(file, str(error)) from error
        return described(name, file, text)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with hold(self._folder / "lock", shared=False):
            yield


def _not_found(name: str) -> TableNotFoundError:
    return TableNotFoundError(
        f"no table of vectors is called {name!r}", hint="List them in `vector_tables`."
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name[:80]!r} is no name of a table of vectors",
            hint="Use small letters, digits and _, at most 63, and begin with no digit.",
        )


def _check_stamp(table: VectorTable, stamp: Stamp) -> None:
    if table.stamp == stamp:
        return
    raise IncompatibleVectorsError(
        f"the vectors of table {table.name!r} were made with {_told(table.stamp)}, "
        f"these with {_told(stamp)}",
        hint="Vectors of different makers cannot be compared: use another table.",
    )


def _told(stamp: Stamp) -> str:
    if not stamp.model:
        return "something unknown"
    adapter = f" and {stamp.adapter}@{stamp.version[:12]}" if stamp.adapter else ""
    return f"{stamp.model}{adapter}"
