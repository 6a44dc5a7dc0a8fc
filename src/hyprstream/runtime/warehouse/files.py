"""Files of whoever asks: Parquet, CSV, JSON lines and Arrow to rows, and rows to Parquet.

They are read and written by the program of the caller, with the caller's rights. A server reads
none: rows are sent to it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

from hyprstream.errors import InvalidRequestError, UnsupportedError

_BATCH_ROWS = 8_192


@contextmanager
def rows_of(file: Path) -> Iterator[pa.RecordBatchReader]:
    """Read a file, of the kind that its suffix says, batch by batch.

    Raises:
        InvalidRequestError: It cannot be read, or is of no such kind.
    """
    read = _READERS.get(file.suffix.lower())
    if read is None:
        raise InvalidRequestError(
            f"{file} is of no kind that is read", hint=f"Kinds are {', '.join(_READERS)}."
        )
    try:
        with read(file) as reader:
            yield reader
    except OSError as error:
        raise InvalidRequestError(f"{file} cannot be read: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise InvalidRequestError(f"{file} cannot be read: {error}") from error


def write_parquet(table: pa.Table, stream: IO[bytes]) -> None:
    """Write rows as Parquet.

    Raises:
        UnsupportedError: A column is of a type that Parquet does not have.
    """
    try:
        pq.write_table(table, stream)
    except pa.ArrowNotImplementedError as error:
        raise UnsupportedError(
            f"Parquet has no form for these rows: {error}", hint="Cast the column to text."
        ) from error


@contextmanager
def _parquet(file: Path) -> Iterator[pa.RecordBatchReader]:
    with pq.ParquetFile(file) as found:
        batches = found.iter_batches(_BATCH_ROWS)
        yield pa.RecordBatchReader.from_batches(found.schema_arrow, batches)


@contextmanager
def _arrow(file: Path) -> Iterator[pa.RecordBatchReader]:
    with pa.memory_map(str(file)) as stream:
        found = pa.ipc.open_file(stream)
        batches = (found.get_batch(i) for i in range(found.num_record_batches))
        yield pa.RecordBatchReader.from_batches(found.schema, batches)


@contextmanager
def _json(file: Path) -> Iterator[pa.RecordBatchReader]:
    yield pa.json.read_json(file).to_reader(_BATCH_ROWS)


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".parquet": _parquet,
    ".csv": pa.csv.open_csv,
    ".jsonl": _json,
    ".arrow": _arrow,
}
