"""JSON from untrusted files: one object, bounded, each key once.

Python's parser keeps the last of several equal keys, admits NaN and lone surrogates, and turns
two bytes into an object of sixty. Here each of these is an error.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from hyprstream.errors import CorruptWeightsError

_MAX_VALUES = 2_000_000  # each takes up to 100 bytes of memory; real headers hold some thousands


def parse_object(file: Path, data: bytes | memoryview) -> dict[str, object]:
    """Parse `data`, which is a part of `file`.

    Raises:
        CorruptWeightsError: The data is not UTF-8, not JSON, not an object, or larger in
            memory than any header is.
    """
    try:
        text = str(data, "utf-8")
        # Each of these bytes begins at most one value; inside strings they merely overcount.
        if sum(text.count(mark) for mark in "{[,") > _MAX_VALUES:
            raise ValueError(f"more than {_MAX_VALUES} values")
        parsed = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:
        raise CorruptWeightsError(file, f"its JSON cannot be read: {error}") from error
    if not isinstance(parsed, dict):
        raise CorruptWeightsError(file, "its JSON is not an object")
    return parsed


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    for text in (*result.keys(), *result.values()):
        if isinstance(text, str) and not text.isascii():
            text.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    return result


def _integer(text: str) -> int:
    if text == "-0":  # a number, but not an integer, to the reference implementation
        raise ValueError("-0 is not an integer")
    return int(text)


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON number")
