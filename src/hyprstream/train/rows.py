"""Files to rows: JSON lines, Parquet and plain text. Files are not trusted.

The length of a line, of a text and of what a Parquet file unpacks to is bounded. Parquet is
read by a program of its own (`parquet_rows.py`), where a hostile file can do no harm.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Literal, NoReturn

from hyprstream.errors import InvalidDatasetError, UnsupportedFormatError
from hyprstream.lora.exchange import guard

MAX_LINE_BYTES = 1 << 20
MAX_TEXT_BYTES = 64 << 20

_PARQUET_MAGIC = b"PAR1"
_PARQUET_LIMITS = guard.Limits(seconds=120, memory_bytes=1 << 30, output_bytes=256 << 20)
_COLUMNS = (
    *("messages", "conversations", "system", "tools", "weight", "thumbs", "label", "text"),
    *("instruction", "input", "context", "output", "response"),
    *("prompt", "question", "completion", "answer", "chosen", "rejected"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record as it stands in a file.

    Attributes:
        number: Where, counted from 1.
        unit: What its file counts: lines, or rows of a table.
        values: What it holds.
    """

    number: int
    unit: Literal["line", "row"]
    values: Mapping[str, object]


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    What a file is shows in its first bytes and, for plain text, in the ending `.txt`;
    everything else is taken for JSON lines, of which empty ones are skipped.

    Raises:
        InvalidDatasetError: The file cannot be read, or a row is no record; names the row.
        UnsupportedFormatError: It is Parquet, and pyarrow is not installed.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
                yield from _json_lines(file, BytesIO(_unpacked(file)), "row")
                return
            stream.seek(0)
            if file.suffix == ".txt":
                yield Row(number=1, unit="line", values={"text": _whole_text(file, stream)})
                return
            yield from _json_lines(file, stream, "line")
    except OSError as error:
        raise InvalidDatasetError(file, f"it cannot be read: {error.strerror}") from error


def _json_lines(file: Path, lines: BufferedIOBase, unit: Literal["line", "row"]) -> Iterator[Row]:
    number = 0
    while line := lines.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            problem = f"longer than {MAX_LINE_BYTES} bytes"
            raise InvalidDatasetError(file, problem, line=number, unit=unit)
        if line.isspace():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            problem = f"it is no JSON: {error}"
            raise InvalidDatasetError(file, problem, line=number, unit=unit) from error
        if not isinstance(row, dict):
            raise InvalidDatasetError(file, "it is no JSON object", line=number, unit=unit)
        yield Row(number=number, unit=unit, values=row)


def _whole_text(file: Path, stream: BufferedIOBase) -> str:
    data = stream.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise InvalidDatasetError(file, f"longer than {MAX_TEXT_BYTES >> 20} MiB; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidDatasetError(file, f"it is no UTF-8 text: {error}") from error


def _unpacked(file: Path) -> bytes:
    if find_spec("pyarrow") is None:
        raise UnsupportedFormatError(
            f"{file} is Parquet, which takes pyarrow to read",
            hint="pip install 'hyprstream[parquet]', or write the rows as JSON lines.",
        )
    argument = json.dumps({"file": str(file.absolute()), "columns": _COLUMNS})
    program = Path(__file__).with_name("parquet_rows.py")
    rows = guard.run(program, argument, b"", _PARQUET_LIMITS)
    if rows is None:
        raise InvalidDatasetError(
            file,
            "it is no sound Parquet file, or unpacks to more than "
            f"{_PARQUET_LIMITS.output_bytes >> 20} MiB",
        )
    return rows


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
