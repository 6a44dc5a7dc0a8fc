"""Streams whose checksum is right and whose content is not."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptGridError, HyprstreamError, UnsupportedCodecError
from hyprstream.vdb.codecs import neural
from hyprstream.vdb.entropy.varints import write_unsigned
from hyprstream.vdb.learned import frame
from tests.vdb.adapters import low_rank, mixed, moved


@pytest.fixture(scope="module")
def key() -> bytes:
    return neural.encode(mixed(1)).data


@pytest.fixture(scope="module")
def update() -> tuple[bytes, object]:
    first = low_rank(1)
    parent = neural.decode_quantised(neural.encode(first).data)
    encoded = neural.encode(moved(first, 1, 0.02), parent=parent)
    assert encoded.report.is_update
    return encoded.data, parent


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**20, 2**40, 2**63, 2**64, -(2**40), 1e300, "x", [], {}]),
)


def with_one_change(node, data):
    """Put something else somewhere into JSON."""
    if isinstance(node, dict) and node and data.draw(st.integers(0, 9)):
        name = data.draw(st.sampled_from(sorted(node)))
        if data.draw(st.integers(0, 9)):
            return {**node, name: with_one_change(node[name], data)}
        return {key: value for key, value in node.items() if key != name}
    if isinstance(node, list) and node and data.draw(st.integers(0, 9)):
        i = data.draw(st.integers(0, len(node) - 1))
        if data.draw(st.integers(0, 9)):
            return [*node[:i], with_one_change(node[i], data), *node[i + 1 :]]
        return node[:i] + node[i + 1 :]
    return data.draw(VALUES)


def decode_or_error(data: bytes, parent=None) -> None:
    try:
        tensors = neural.decode(data, parent=parent, max_values=1 << 20)
    except (CorruptGridError, UnsupportedCodecError):
        return
    assert sum(tensor.num_active for tensor in tensors.values()) <= 1 << 20


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_table_of_contents_is_an_adapter_or_an_error(key, data):
    opened = frame.read(key)
    table = dict(opened.table)
    changed = data.draw(st.sampled_from(sorted(table)))
    table[changed] = with_one_change(table[changed], data)
    decode_or_error(frame.write(replace(opened, table=table)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_table_of_an_update_is_an_adapter_or_an_error(update, data):
    opened = frame.read(update[0])
    more = data.draw(st.lists(VALUES, max_size=8) | VALUES)
    table = {"more": more, "grain": data.draw(VALUES)}
    changed = replace(opened, table=table, depth=data.draw(st.integers(1, 3)))
    decode_or_error(frame.write(changed), update[1])


def damaged(array: np.ndarray, data) -> np.ndarray:
    changed = array.copy()
    if len(changed):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    return changed


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_integers_are_an_adapter_or_an_error(key, data):
    opened = frame.read(key)
    number = data.draw(st.integers(0, len(opened.blocks) - 1))
    block = opened.blocks[number]
    field = data.draw(st.sampled_from(["classes", "side", "states", "words", "bits", "codes"]))
    if field == "codes":
        codes = damaged(np.frombuffer(opened.codes, np.uint8), data).tobytes()
        decode_or_error(frame.write(replace(opened, codes=codes)))
        return
    value = getattr(block, field)
    is_bytes = isinstance(value, bytes)
    array = damaged(np.frombuffer(value, np.uint8) if is_bytes else value, data)
    changed = replace(block, **{field: array.tobytes() if is_bytes else array})
    blocks = [*opened.blocks[:number], changed, *opened.blocks[number + 1 :]]
    decode_or_error(frame.write(replace(opened, blocks=blocks)))


def test_an_adapter_larger_than_allowed_is_an_error(key):
    with pytest.raises(CorruptGridError, match="more than 1000 "):
        neural.decode(key, max_values=1000)


@pytest.mark.parametrize(
    "part",
    [
        {"name": "x", "shape": [1 << 30, 1 << 9]},
        {"name": "x", "pair": [1 << 35, 1, 1], "kept": 0},
        {"name": "x", "pair": [0, 1 << 40, 0], "kept": 1 << 40},
        {"name": "x", "shape": [1 << 36], "masks": [{"seed": 1, "active": 5}]},
        {"name": "x", "shape": [1 << 38], "masks": [{"runs": 1 << 30}]},
    ],
)
def test_a_few_bytes_do_not_make_a_large_adapter(key, part):
    opened = frame.read(key)
    table = {"step": 0, "grain": 1, "parts": [part]}
    with pytest.raises(CorruptGridError):
        neural.decode(frame.write(replace(opened, table=table, codes=b"\0")))


def test_a_version_of_the_future_is_an_error(key):
    changed = bytearray(key)
    changed[4] = 2
    with pytest.raises(UnsupportedCodecError, match="version 2"):
        neural.decode(bytes(changed))


def test_a_head_that_would_grow_without_limit_is_an_error(key):
    opened = frame.read(key)
    table = {**opened.table, "x": "0" * (1 << 26)}
    with pytest.raises(CorruptGridError, match="head is too large"):
        neural.decode(frame.write(replace(opened, table=table)))


@pytest.mark.parametrize("json", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_a_table_that_is_no_object_is_an_error(json):
    head = zstandard.compress(write_unsigned(np.array([len(json), 0, 0])) + json)
    rest = write_unsigned(np.array([len(head)])) + head
    prefix = struct.pack("<4sBBHI", b"HYRD", 1, 0, 0, zlib.crc32(rest))
    with pytest.raises(CorruptGridError, match="table of contents"):
        neural.decode(prefix + rest)


def test_every_error_says_what_to_do(key):
    with pytest.raises(HyprstreamError) as caught:
        neural.decode(key[:50])
    assert caught.value.hint
