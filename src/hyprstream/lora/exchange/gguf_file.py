"""Writes GGUF files, version 3, tensor by tensor; and takes metadata over from others."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hyprstream.lora.exchange.safetensors_file import Part, raw_bytes
from hyprstream.models.checkpoint import GgufFile
from hyprstream.models.checkpoint.cursor import Cursor
from hyprstream.models.checkpoint.mapping import MappedFile

ALIGNMENT = 32
_VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
# ggml's numbers of the types that are written here, or taken over in blocks.
TYPES: Mapping[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "I8": 24,
    "I16": 25,
    "I32": 26,
    "I64": 27,
    "F64": 28,
    "BF16": 30,
}
KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Scalar = bool | int | float | str
Value = Scalar | Sequence[int] | Sequence[float] | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufPart:
    """A tensor that is yet to be written.

    Attributes:
        shape: In torch's order, outermost first.
        kind: A key of `TYPES`.
        size_bytes: Bytes in the file.
        make: Gives the bytes; called once, when its turn comes.
    """

    shape: tuple[int, ...]
    kind: str
    size_bytes: int
    make: Callable[[], memoryview]

    @classmethod
    def dense(cls, part: Part) -> "GgufPart":
        """Write numbers."""
        return cls(
            shape=part.shape,
            kind=KINDS[part.dtype],
            size_bytes=part.size_bytes,
            make=lambda: raw_bytes(part.make(), part),
        )

    @classmethod
    def of(cls, tensor: Tensor) -> "GgufPart":
        """Take a tensor that exists."""
        return cls.dense(Part.of(tensor))


def entry(key: str, value: Value) -> bytes:
    """Return a metadata entry: texts, truth values, 32-bit numbers, and lists of one of them."""
    return _text(key) + _typed(value)


def entries_of(file: GgufFile, without: Sequence[str]) -> list[bytes]:
    """Return a file's own metadata entries, byte by byte.

    Args:
        file: It was read, so its entries are sound.
        without: Keys that are not wanted.
    """
    (mapped,) = file.files
    cursor = Cursor(mapped, len(b"GGUF") + 4 + 8)
    count = cursor.u64()
    entries = []
    for _ in range(count):
        start = cursor.offset
        key = cursor.text()
        cursor.value(cursor.u32())
        if key not in without:
            entries.append(_slice(mapped, start, cursor.offset))
    return entries


def write_gguf(
    file: Path,
    entries: Sequence[bytes],
    parts: Mapping[str, GgufPart],
    *,
    alignment: int = ALIGNMENT,
) -> None:
    """Write a file.

    Args:
        file: Where.
        entries: Metadata, as `entry` and `entries_of` give them.
        parts: Tensors by name.
        alignment: What the metadata say of it.
    """
    table, offset = [], 0
    for name, part in parts.items():
        dims = part.shape[::-1]
        table.append(_text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        table.append(struct.pack("<IQ", TYPES[part.kind], offset))
        offset += part.size_bytes + -part.size_bytes % alignment
    head = b"GGUF" + struct.pack("<IQQ", _VERSION, len(parts), len(entries))
    head += b"".join(entries) + b"".join(table)
    with file.open("wb") as stream:
        stream.write(head + bytes(-len(head) % alignment))
        for part in parts.values():
            data = part.make()
            assert len(data) == part.size_bytes
            stream.write(data)
            stream.write(bytes(-part.size_bytes % alignment))


def _slice(mapped: MappedFile, start: int, stop: int) -> bytes:
    return mapped.data[start:stop]


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    if isinstance(value, Sequence) and not isinstance(value, str):
        assert value, "an empty list has no type"
        kind = _kind(value[0])
        kind = _I32 if kind == _U32 else kind  # as llama.cpp wants the types of tokens
        head = struct.pack("<IIQ", _ARRAY, kind, len(value))
        return head + b"".join(_plain(kind, item) for item in value)
    kind = _kind(value)
    return struct.pack("<I", kind) + _plain(kind, value)


def _kind(value: Scalar) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _U32 if value >= 0 else _I32
    return _F32 if isinstance(value, float) else _STRING


def _plain(kind: int, value: Scalar) -> bytes:
    if kind == _STRING:
        return _text(str(value))
    return struct.pack({_BOOL: "<?", _U32: "<I", _I32: "<i", _F32: "<f"}[kind], value)
