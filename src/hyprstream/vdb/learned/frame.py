"""The outside of a stream: what is checked before anything in it is believed.

    0   4  magic "HYRD"
    4   1  version of the format
    5   1  0 for a key frame, 1 for an update
    6   2  depth: updates since the key frame
    8   4  CRC-32 of all bytes after these
    12  16 identity of the parent, of an update only
        .  varint: bytes of the head, then the head, a Zstandard frame
        .  for each block its states (u32), words (u16) and bits

Integers are little-endian. The head holds the table of contents in JSON, the codes of scales
as varints, and for each block its classes and side integers.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from hyprstream.errors import CorruptGridError, UnsupportedCodecError
from hyprstream.vdb.entropy.groups import Coded
from hyprstream.vdb.entropy.varints import VarintReader, write_unsigned

MAGIC = b"HYRD"
VERSION = 1
IDENTITY_BYTES = 16

_PREFIX = struct.Struct("<4sBBHI")
_MAX_HEAD_BYTES = 1 << 26
_MAX_BLOCKS = 2
_ZSTD_LEVEL = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a stream consists of.

    Attributes:
        depth: Updates since the key frame; 0 for a key frame.
        parent: Identity of the version that an update changes; empty for a key frame.
        table: Table of contents.
        codes: Codes of scales, as varints.
        blocks: Coded integers.
    """

    depth: int
    parent: bytes
    table: Mapping[str, Any]
    codes: bytes
    blocks: Sequence[Coded]


def identify(data: bytes) -> bytes:
    """Return the identity of the version that a stream holds."""
    return hashlib.sha256(data).digest()[:IDENTITY_BYTES]


def write(frame: Frame) -> bytes:
    """Return the stream."""
    table = json.dumps(frame.table, separators=(",", ":"), ensure_ascii=False).encode()
    sizes = [len(table), len(frame.codes), len(frame.blocks)]
    for block in frame.blocks:
        sizes += [len(block.classes), len(block.side)]
        sizes += [len(block.states), len(block.words), len(block.bits)]
    parts = [write_unsigned(np.array(sizes, np.int64)), table, frame.codes]
    parts += [part for block in frame.blocks for part in (block.classes.tobytes(), block.side)]
    head = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(b"".join(parts))
    body = [frame.parent, write_unsigned(np.array([len(head)], np.int64)), head]
    for block in frame.blocks:
        body += [block.states.astype("<u4").tobytes(), block.words.astype("<u2").tobytes()]
        body.append(block.bits)
    rest = b"".join(body)
    is_update = bool(frame.parent)
    return _PREFIX.pack(MAGIC, VERSION, is_update, frame.depth, zlib.crc32(rest)) + rest


def read(data: bytes) -> Frame:
    """Read a stream.

    Raises:
        UnsupportedCodecError: It is of a version that is not known here.
        CorruptGridError: It is no stream, or damaged.
    """
    if len(data) < _PREFIX.size or data[:4] != MAGIC:
        raise CorruptGridError("it does not begin as a stream of the learned code")
    _, version, is_update, depth, checksum = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise UnsupportedCodecError(
            f"version {version} of the learned code is not supported",
            hint=f"This program reads version {VERSION}; update it.",
        )
    rest = data[_PREFIX.size :]
    if zlib.crc32(rest) != checksum:
        raise CorruptGridError("its checksum does not match")
    if is_update > 1 or (depth == 0) == bool(is_update):
        raise CorruptGridError("it is neither a key frame nor an update")
    cursor = _Cursor(rest)
    parent = cursor.take(IDENTITY_BYTES if is_update else 0)
    head = _Cursor(_decompress(cursor.take(cursor.varint())))
    sizes = [head.varint() for _ in range(3)]
    if sizes[2] > _MAX_BLOCKS:
        raise CorruptGridError("it has more blocks than a stream can have")
    counts = [[head.varint() for _ in range(5)] for _ in range(sizes[2])]
    table, codes = _table(head.take(sizes[0])), head.take(sizes[1])
    blocks = [_block(head, cursor, sizes) for sizes in counts]
    head.finish()
    cursor.finish()
    return Frame(depth=depth, parent=parent, table=table, codes=codes, blocks=blocks)


def _block(head: "_Cursor", body: "_Cursor", sizes: Sequence[int]) -> Coded:
    num_classes, num_side, num_states, num_words, num_bits = sizes
    return Coded(
        classes=np.frombuffer(head.take(num_classes), np.uint8),
        side=head.take(num_side),
        states=np.frombuffer(body.take(4 * num_states), "<u4").astype(np.uint32),
        words=np.frombuffer(body.take(2 * num_words), "<u2").astype(np.uint16),
        bits=body.take(num_bits),
    )


def _decompress(data: bytes) -> bytes:
    """Decompress the head, whose size is limited by what its frame announces."""
    try:
        if not 0 <= zstandard.frame_content_size(data) <= _MAX_HEAD_BYTES:
            raise CorruptGridError("its head is too large")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptGridError("its head cannot be decompressed") from error


def _table(data: bytes) -> Mapping[str, Any]:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptGridError("its table of contents is no JSON") from error
    if not isinstance(table, dict):
        raise CorruptGridError("its table of contents is no object")
    return table


class _Cursor:
    """Takes bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._position:
            raise CorruptGridError("it ends early")
        self._position += size
        return self._data[self._position - size : self._position]

    def varint(self) -> int:
        reader = VarintReader(self._data[self._position : self._position + 9])
        value = int(reader.unsigned(1)[0])
        self._position += reader.position
        return value

    def finish(self) -> None:
        if self._position != len(self._data):
            raise CorruptGridError("it goes on after its end")
