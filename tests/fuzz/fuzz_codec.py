"""Fuzz the reader of the learned code: `python -m tests.fuzz.fuzz_codec SECONDS FOLDER`.

A checksum and a compressed head would stop every change. An input is therefore the head as it
is, after its length, and then the body; both are made into a stream. Updates are read after a
sound key frame.
"""

import struct
import zlib
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # not installed
import numpy as np
import zstandard

with atheris.instrument_imports(include=["hyprstream"]):
    from hyprstream.vdb.codecs import neural

from hyprstream.errors import UnsupportedCodecError
from hyprstream.vdb.entropy.varints import VarintReader, write_unsigned
from tests.fuzz.driver import fuzz
from tests.vdb.adapters import SEEDS, mixed

LENGTH = struct.Struct("<BH")  # is it an update; bytes of the head
MAX_VALUES = 1 << 20
WORDS = ("parts", "name", "shape", "pair", "kept", "masks", "runs", "seed", "active", "grain")
KEY = neural.encode(mixed(1), seeds=SEEDS).data
PARENT = neural.decode_quantised(KEY)


def _sound() -> bytes:
    reader = VarintReader(KEY[12:30])
    size = reader.one(1 << 20)
    start = 12 + reader.position
    head = zstandard.decompress(KEY[start : start + size])
    return LENGTH.pack(0, len(head)) + head + KEY[start + size :]


def _stream(data: bytes) -> bytes:
    is_update, size = LENGTH.unpack_from(data)
    head = zstandard.compress(data[LENGTH.size : LENGTH.size + size], 1)
    rest = write_unsigned(np.array([len(head)])) + head + data[LENGTH.size + size :]
    if is_update % 2:
        rest = PARENT.identity + rest
    prefix = struct.pack("<4sBBHI", b"HYRD", 1, is_update % 2, is_update % 2, zlib.crc32(rest))
    return prefix + rest


def read_all(file: Path) -> None:
    data = file.read_bytes()
    if len(data) < LENGTH.size:
        return
    try:
        neural.decode(_stream(data), parent=PARENT, max_values=MAX_VALUES)
    except UnsupportedCodecError:
        return


if __name__ == "__main__":
    fuzz(read_all, _sound(), WORDS)
