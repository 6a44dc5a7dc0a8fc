"""Values as text: made harmless for a terminal, made plain for JSON and YAML. Pure functions."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

_CONTROLS = [code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
_SHOWN = {code: f"\\x{code:02x}" for code in _CONTROLS}
_SHOWN_ON_ONE_LINE = {**_SHOWN, ord("\n"): " ", ord("\t"): " "}
_JSON_CONTROLS = re.compile("[\x7f-\x9f]")  # json leaves these as they are


def visible(text: str) -> str:
    r"""Show control characters other than newline and tab instead of obeying them.

    Example:
        >>> visible("\x1b[2J")
        '\\x1b[2J'
    """
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """Do as `visible`, and turn newlines and tabs into blanks."""
    if text.isprintable():
        return text  # most are, and translating takes ten times as long
    return text.translate(_SHOWN_ON_ONE_LINE)


def to_json(value: object, *, indent: int | None = 2) -> str:
    """Write a value as JSON without any control character, readable in every language."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False)
    return _JSON_CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plain(value: object) -> object:
    """Turn dataclasses, mappings and sequences into what JSON and YAML know."""
    if isinstance(value, str | Path):
        return str(value)  # also of enums
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


def in_bytes(num_bytes: float) -> str:
    """Write a number of bytes as people do.

    Example:
        >>> in_bytes(98_000_000)
        '98.0 MB'
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    return _scaled(num_bytes, ("kB", "MB", "GB", "TB"))


def in_millions(count: int) -> str:
    """Write a number of parameters as people do.

    Example:
        >>> in_millions(134_515_008)
        '134.5 M'
    """
    return str(count) if count < 1000 else _scaled(count, ("K", "M", "B", "T"))


def in_time(seconds: float) -> str:
    """Write how long something takes.

    Example:
        >>> [in_time(seconds) for seconds in (5.4, 90, 7265)]
        ['5 s', '1 min 30 s', '2 h 1 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    for unit in units:
        value /= 1000
        if value < 999.95:  # would be printed as 1000.0
            return f"{value:.1f} {unit}"
    return f"{value:.1f} {units[-1]}"
