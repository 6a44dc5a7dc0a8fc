"""Checked reading of the `tokenizer.*` keys of a GGUF file. Knows types, not meanings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptTokenizerError

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"


class GgufKeys:
    """The tokenizer's part of a GGUF's metadata; names are given without `tokenizer.ggml.`.

    Every method raises CorruptTokenizerError if the value is not of its type.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    @property
    def general_name(self) -> object:
        """What the file calls its model; anything or nothing."""
        return self._metadata.get("general.name")

    def text(self, name: str, *, default: str | None = None) -> str:
        """Read a string; without a default it must be there."""
        value = self._metadata.get(_PREFIX + name, default)
        if not isinstance(value, str):
            raise _wrong(name, "no string", value)
        return value

    def texts(self, name: str) -> list[str]:
        """Read an array of strings, which must be there."""
        values = self._metadata.get(_PREFIX + name)
        if not isinstance(values, list) or not set(map(type, values)) <= {str}:
            raise _wrong(name, "no array of strings", values)
        try:
            "".join(values).encode()
        except UnicodeEncodeError as error:
            raise _wrong(name, "not Unicode text", error.object[error.start]) from error
        return values

    def flag(self, name: str, *, default: bool) -> bool:
        """Read a boolean."""
        value = self._metadata.get(_PREFIX + name, default)
        if not isinstance(value, (bool, np.bool_)):
            raise _wrong(name, "no boolean", value)
        return bool(value)

    def token_id(self, name: str, *, num_tokens: int) -> int | None:
        """Read the id of a token; None if there is none."""
        value = self._metadata.get(_PREFIX + name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise _wrong(name, "no token id", value)
        if not 0 <= value < num_tokens:
            raise _wrong(name, f"outside the vocabulary of {num_tokens} tokens", value)
        return int(value)

    def integers(self, name: str, *, count: int) -> list[int] | None:
        """Read an array of `count` integers; None if there is none."""
        if _PREFIX + name not in self._metadata:
            return None
        values: list[int] = self._numbers(name, count=count, kinds="iu").tolist()
        return values

    def floats(self, name: str, *, count: int) -> list[float]:
        """Read an array of `count` numbers, which must be there."""
        values: list[float] = self._numbers(name, count=count, kinds="fiu").tolist()
        return values

    def chat_templates(self) -> dict[str, str]:
        """Read the chat templates, by name; the nameless one is `default`."""
        found = {}
        for key, value in self._metadata.items():
            if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}."):
                if not isinstance(value, str):
                    raise CorruptTokenizerError(f"{key} is no string: {_shown(value)}")
                found[key[len(_TEMPLATE) + 1 :] or "default"] = value
        return found

    def _numbers(self, name: str, *, count: int, kinds: str) -> NDArray[Any]:
        value = self._metadata.get(_PREFIX + name)
        if not isinstance(value, (list, np.ndarray)):
            raise _wrong(name, "no array of numbers", value)
        try:
            array = np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise _wrong(name, "no array of numbers", value) from error
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise _wrong(name, "no array of numbers", value)
        if len(array) != count:
            raise _wrong(name, f"not one number for each of {count} tokens", value)
        if np.isnan(array).any():
            raise _wrong(name, "not all numbers", float("nan"))
        return array


def _wrong(name: str, problem: str, value: object) -> CorruptTokenizerError:
    return CorruptTokenizerError(f"{_PREFIX}{name} is {problem}: {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, (list, np.ndarray)):
        return f"{len(value)} values"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
