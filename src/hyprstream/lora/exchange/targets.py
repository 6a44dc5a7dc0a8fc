"""Which modules the settings of a PEFT adapter mean; the rules are PEFT's own.

`check_target_module_exists` and `get_pattern_key` of peft 0.21. Regular expressions of a
file run in a guarded process unless they are plain names.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hyprstream.errors import InvalidAdapterError, UnsupportedError
from hyprstream.lora.exchange import guard, match

# Nothing here repeats or branches, so that matching takes linear time.
_PLAIN = re.compile(r"\^?(?:[\w\-.]|\\\.)*\$?")
_LIMITS = guard.Limits(seconds=2, memory_bytes=1 << 30, output_bytes=1 << 24)
_MAX_PATTERNS = 4096
_LAYER = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")
_PLAIN_WORD = re.compile(r"\w+")

_Value = TypeVar("_Value", int, float)


def first_matches(patterns: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """Return for each name which of a stranger's patterns matches its beginning first, or None.

    Raises:
        InvalidAdapterError: A pattern is none, or they take too long.
    """
    if not patterns:
        return [None] * len(names)
    if len(patterns) > _MAX_PATTERNS:
        raise InvalidAdapterError(
            f"the adapter's settings hold {len(patterns)} patterns",
            hint=f"At most {_MAX_PATTERNS} are admitted.",
        )
    framed = [rf"(.*\.)?({pattern})$" for pattern in patterns]
    return _first_matches(patterns, framed, names)


def matches_whole(pattern: str, names: Sequence[str]) -> list[bool]:
    """Return which names a stranger's pattern matches from end to end.

    Raises:
        InvalidAdapterError: The pattern is none, or takes too long.
    """
    found = _first_matches([pattern], [rf"(?:{pattern})\Z"], names)
    return [index is not None for index in found]


def _first_matches(
    patterns: Sequence[str], framed: Sequence[str], names: Sequence[str]
) -> list[int | None]:
    if all(_PLAIN.fullmatch(pattern) for pattern in patterns):
        return match.first_matches(list(framed), list(names))
    data = json.dumps([list(framed), list(names)]).encode("utf-8", "replace")
    answer = guard.run(Path(match.__file__), "", data, _LIMITS)
    if answer is None:
        raise InvalidAdapterError(
            "a pattern among the adapter's settings is no regular expression, or matching it "
            f"takes over {_LIMITS.seconds} seconds",
            hint="Name modules in target_modules, rank_pattern and alpha_pattern plainly.",
        )
    found: list[int | None] = json.loads(answer)
    return found


def pattern_values(
    pattern: Mapping[str, _Value], names: Sequence[str], otherwise: _Value
) -> dict[str, _Value]:
    """Return the value that a pattern of settings gives to each module.

    Raises:
        InvalidAdapterError: A key is no regular expression, or takes too long.
    """
    keys = list(pattern)
    found = first_matches(keys, names)
    return {
        # What no key matches as an expression may still be a key, letter by letter.
        name: pattern.get(name, otherwise) if index is None else pattern[keys[index]]
        for name, index in zip(names, found, strict=True)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Which modules of the base model an adapter's settings mean.

    Attributes:
        names: An expression for whole names, or names and ends of names.
        excluded: The same, for modules that are not meant.
        layers: Only modules in these layers, among those found by the end of a name; None
            for all.
        layer_lists: What the lists of layers are called; empty for any name.
    """

    names: str | tuple[str, ...]
    excluded: str | tuple[str, ...] = ()
    layers: frozenset[int] | None = None
    layer_lists: tuple[str, ...] = ()

    def among(self, names: Sequence[str]) -> set[str]:
        """Choose among what the base model calls its modules.

        Raises:
            InvalidAdapterError: An expression is none, or takes too long.
            UnsupportedError: Lists of layers are named by an expression.
        """
        chosen = _chosen(names, self.names)
        if self.layers is not None and not isinstance(self.names, str):
            exact = set(self.names)
            chosen = {name for name in chosen if name in exact or self._layer(name) in self.layers}
        return chosen - _chosen(names, self.excluded)

    def _layer(self, name: str) -> int | None:
        """Return the layer that a module is in; None if its name has no number."""
        found = _LAYER.match(name)
        for word in self.layer_lists:
            if not _PLAIN_WORD.fullmatch(word):
                raise UnsupportedError(
                    f"layers_pattern {word!r} is an expression, which is not supported",
                    hint="Name the layers of the adapter in target_modules.",
                )
            found = re.match(rf"(?:^|.*?\.){word}\.(?P<index>\d+)\.", name)
            if found:
                break
        # Names may come from outside, and Python refuses very long numbers.
        return int(found["index"]) if found and len(found["index"]) < 10 else None


def _chosen(names: Sequence[str], wanted: str | Sequence[str]) -> set[str]:
    if not wanted:
        return set()
    if wanted == "all-linear":
        return {name for name in names if name != "lm_head"}
    if isinstance(wanted, str):
        flags = matches_whole(wanted, names)
        return {name for name, flag in zip(names, flags, strict=True) if flag}
    ends = set(wanted)
    return {name for name in names if not ends.isdisjoint(_ends(name))}


def _ends(name: str) -> list[str]:
    """List a name and everything behind one of its dots."""
    words = name.split(".")
    return [".".join(words[start:]) for start in range(len(words))]
