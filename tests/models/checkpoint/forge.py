"""Files made byte by byte, so that any rule of a format can be broken on purpose."""

import json
import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, items: Sequence[bytes], *, count: int | None = None) -> bytes:
    return struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


def tensor(name: str | bytes, dims: Sequence[int], kind: int, offset: int) -> bytes:
    return (
        text(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    num_tensors: int | None = None,
    num_entries: int | None = None,
    alignment: int = 32,
) -> bytes:
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def sound_gguf() -> bytes:
    """A small file with every kind of metadata value, plain tensors and blocks."""
    entries = [
        entry("general.architecture", STRING, text("llama")),
        entry("u8", U8, b"\x01"),
        entry("i16", I16, struct.pack("<h", -2)),
        entry("u32", U32, struct.pack("<I", 7)),
        entry("f32", F32, struct.pack("<f", 0.5)),
        entry("bool", BOOL, b"\x01"),
        entry("i64", I64, struct.pack("<q", -(2**62))),
        entry("f64", F64, struct.pack("<d", 1e300)),
        entry("tokens", ARRAY, array(STRING, [text("a"), text("\u00e9"), text("")])),
        entry("scores", ARRAY, array(F32, [struct.pack("<f", 1.5)] * 3)),
        entry("flags", ARRAY, array(BOOL, [b"\0", b"\1"])),
        entry("nested", ARRAY, array(ARRAY, [array(U8, [b"\x05"]), array(U8, [])])),
    ]
    tensors = [
        tensor("a.weight", [4, 2], 0, 0),
        tensor("b.weight", [32, 3], 3, 32),
        tensor("c.bias", [3], 1, 96),
    ]
    return gguf(entries, tensors, bytes(range(32)) + bytes(range(60)) + bytes(4) + bytes(range(6)))


def sound_safetensors() -> bytes:
    """A small file with metadata, a scalar, an empty tensor and several dtypes."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
        "c": {"dtype": "U8", "shape": [], "data_offsets": [22, 23]},
        "d": {"dtype": "I64", "shape": [0, 5], "data_offsets": [23, 23]},
    }
    return safetensors(header, bytes(range(23)))
