"""Records of files, duplicates left out, and which of them are set aside to judge by.

Records that say the same are taken once. Files say which records are judged by; or else the side
of a record follows from its prompt alone, from run to run, in whatever order and from whatever
file. Either way a question that is learnt is never one that is judged by.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyprstream.errors import InvalidDatasetError, InvalidInputError
from hyprstream.train.records import (
    Form,
    Record,
    Text,
    content_of,
    parse_record,
    prompt_of,
)
from hyprstream.train.rows import read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A record and where it stands.

    Attributes:
        record: What it says.
        file: Where it comes from.
        number: Its line or row there, from 1.
        unit: Which of both is counted.
    """

    record: Record
    file: Path
    number: int
    unit: str

    def wrong(self, problem: object) -> InvalidDatasetError:
        """Return the error that names the place."""
        return InvalidDatasetError(self.file, str(problem), line=self.number, unit=self.unit)


def read_records(files: Iterable[Path], form: Form | None = None) -> Iterator[Placed]:
    """Yield the records of files, in order.

    Raises:
        InvalidDatasetError: A file cannot be read, or a row is no record; names it.
        UnsupportedFormatError: A file is Parquet, and pyarrow is not installed.
    """
    for file in files:
        for row in read_rows(file):
            try:
                record = parse_record(row.values, form)
            except InvalidInputError as error:
                problem = str(error)
                raise InvalidDatasetError(file, problem, line=row.number, unit=row.unit) from error
            yield Placed(record=record, file=file, number=row.number, unit=row.unit)


def is_held_out(prompt: str, share: float) -> bool:
    """Tell whether a prompt is set aside; white space makes no other prompt of it."""
    number = int.from_bytes(_digest(prompt)[:8], "big")
    return number < share * 2.0**64


def without_duplicates(records: Iterable[Placed]) -> Iterator[Placed]:
    """Yield the first of all records that say the same, white space aside."""
    seen: set[bytes] = set()
    for placed in records:
        digest = _digest(content_of(placed.record))
        if digest not in seen:
            seen.add(digest)
            yield placed


def split_records(records: Sequence[Placed], share: float) -> tuple[list[Placed], list[Placed]]:
    """Return the records to train on and those to judge by.

    Plain texts have no prompt; they are split by `build` when they have become windows.
    """
    sides: tuple[list[Placed], list[Placed]] = ([], [])
    for placed in records:
        is_text = isinstance(placed.record, Text)
        sides[not is_text and is_held_out(prompt_of(placed.record), share)].append(placed)
    return sides


def split_files(
    records: Sequence[Placed], held_out: frozenset[Path]
) -> tuple[list[Placed], list[Placed]]:
    """Return the records to train on and those of files to judge by.

    Records whose prompt is judged by are on neither side if they come from other files.
    """
    judging = [placed for placed in records if placed.file in held_out]
    asked = {_digest(prompt_of(placed.record)) for placed in judging}
    others = (placed for placed in records if placed.file not in held_out)
    return [p for p in others if _digest(prompt_of(p.record)) not in asked], judging


def _digest(text: str) -> bytes:
    """Hash a text, white space normalised; half a surrogate pair hashes like any text."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).digest()
