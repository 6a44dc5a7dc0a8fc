"""Protocol buffers, as far as Flight SQL needs them: declared messages to bytes and back.

A message is a dict with an entry for every declared field; one that may be absent is None
then. What was not declared is skipped, as the format demands. No generated code and no
registry of the process that another package could have filled.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hyprstream.errors import InvalidRequestError

Message = dict[str, Any]

_VARINTS = frozenset({"int32", "int64", "uint32", "bool"})
_FIXED = {"double": "<d", "sfixed64": "<q"}
_WORDS = frozenset({"string", "bytes"})
_DEFAULTS: Mapping[str, Any] = {"string": "", "bytes": b"", "bool": False, "double": 0.0}
_MESSAGE = re.compile(r"(\w+)\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Attributes:
        name: What it is called.
        number: What stands for it on the wire.
        kind: A scalar's name, or that of a message.
        label: `plain`, `optional` (presence is told), `repeated`, `map` (from texts), or
            `choice` (one of the message's only oneof).
    """

    name: str
    number: int
    kind: str
    label: str


Declarations = Mapping[str, tuple[Field, ...]]
_LABELS = {"!": "plain", "?": "optional", "*": "repeated", "@": "map", "+": "choice"}


def declare(text: str) -> Declarations:
    """Read declarations: `Name{label kind field number; ...}` each."""
    found = {}
    for name, body in _MESSAGE.findall(text):
        fields = [part.split() for part in body.split(";") if part.strip()]
        found[name] = tuple(
            Field(field, int(number), kind, _LABELS[label]) for label, kind, field, number in fields
        )
    return found


def encode(declared: Declarations, name: str, values: Message) -> bytes:
    """Write a message; fields without a value are left out."""
    out = bytearray()
    for field in declared[name]:
        value = values.get(field.name)
        if value is None:
            continue
        if field.label == "map":
            for key, entry in value.items():
                body = _written(declared, "string", 1, key)
                out += _bytes_field(field.number, body + _written(declared, field.kind, 2, entry))
        elif field.label == "repeated":
            if field.kind in _VARINTS:
                out += _bytes_field(field.number, b"".join(_varint(item) for item in value))
            else:
                for item in value:
                    out += _written(declared, field.kind, field.number, item)
        elif field.label != "plain" or value != _DEFAULTS.get(field.kind, 0):
            out += _written(declared, field.kind, field.number, value)
    return bytes(out)


def decode(declared: Declarations, name: str, data: bytes) -> Message:
    """Read a message.

    Raises:
        InvalidRequestError: The bytes are no such message.
    """
    fields = {field.number: field for field in declared[name]}
    message = {field.name: _absent(field) for field in fields.values()}
    try:
        for number, wire, raw in _tokens(data):
            field = fields.get(number)
            if field is not None:
                _take(declared, message, field, wire, raw)
    except (IndexError, struct.error, UnicodeDecodeError, _DamagedError) as error:
        raise InvalidRequestError(f"the message is no {name}") from error
    return message


class _DamagedError(Exception):
    pass


def _absent(field: Field) -> Any:
    if field.label == "map":
        return {}
    if field.label == "repeated":
        return []
    if field.label in {"optional", "choice"} or field.kind[0].isupper():
        return None
    return _DEFAULTS.get(field.kind, 0)


def _take(declared: Declarations, message: Message, field: Field, wire: int, raw: Any) -> None:
    if field.label == "map":
        key, value = "", None
        for number, entry_wire, entry in _tokens(_bytes(wire, raw)):
            if number == 1:
                key = _value(declared, "string", entry_wire, entry)
            elif number == 2:
                value = _value(declared, field.kind, entry_wire, entry)
        message[field.name][key] = value
    elif field.label == "repeated" and field.kind in _VARINTS and wire == 2:
        position = 0
        while position < len(raw):
            number, position = _read_varint(raw, position)
            message[field.name].append(_value(declared, field.kind, 0, number))
    elif field.label == "repeated":
        message[field.name].append(_value(declared, field.kind, wire, raw))
    else:
        message[field.name] = _value(declared, field.kind, wire, raw)


def _value(declared: Declarations, kind: str, wire: int, raw: Any) -> Any:
    if kind in _VARINTS:
        if wire != 0:
            raise _DamagedError
        if kind == "bool":
            return raw != 0
        bits = 64 if kind == "int64" else 32
        number = raw & ((1 << bits) - 1)
        return number - (1 << bits) if kind != "uint32" and number >> (bits - 1) else number
    if kind in _FIXED:
        if wire != 1:
            raise _DamagedError
        return struct.unpack(_FIXED[kind], raw)[0]
    content = _bytes(wire, raw)
    if kind == "string":
        return content.decode()
    return content if kind == "bytes" else decode(declared, kind, content)


def _bytes(wire: int, raw: Any) -> bytes:
    if wire != 2:
        raise _DamagedError
    return bytes(raw)


def _tokens(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Cut bytes into fields: number, wire type, and a number or bytes."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _read_varint(data, position)
            yield number, wire, value
            continue
        if wire == 2:
            length, position = _read_varint(data, position)
        elif wire in {1, 5}:
            length = 8 if wire == 1 else 4
        else:
            raise _DamagedError
        if number == 0 or length > len(data) - position:
            raise _DamagedError
        yield number, wire, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & ((1 << 64) - 1), position
    raise _DamagedError


def _written(declared: Declarations, kind: str, number: int, value: Any) -> bytes:
    if kind in _VARINTS:
        return _varint(number << 3) + _varint(int(value))
    if kind in _FIXED:
        return _varint(number << 3 | 1) + struct.pack(_FIXED[kind], value)
    if kind == "string":
        return _bytes_field(number, value.encode())
    if kind == "bytes":
        return _bytes_field(number, value)
    return _bytes_field(number, encode(declared, kind, value))


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
