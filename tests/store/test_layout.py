"""Payloads: every code, chains of updates, and payloads that are something else."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream import lookup
from hyprstream.errors import (
    ChecksumMismatchError,
    CorruptError,
    CorruptGridError,
    IncompatibleAdapterError,
    UnsupportedCodecError,
    UnsupportedError,
)
from hyprstream.refs import VersionId
from hyprstream.store import layout
from hyprstream.store.manifest import Draft
from hyprstream.store.store import AdapterStore
from hyprstream.vdb.codecs import load, neural
from hyprstream.vdb.nanovdb.files import open_file, write_bytes
from hyprstream.vdb.opaque import opaque_grid
from tests.store.fakes import BASE
from tests.vdb.adapters import assert_same, low_rank, mixed, moved, relative_error

CODECS = lookup.names("hyprstream.vdb.codecs")


@pytest.fixture
def store(tmp_path):
    store = AdapterStore(tmp_path / "adapters")
    yield store
    store.close()


def draft(codec: str, **fields) -> Draft:
    return Draft(base=BASE, kinds=["low_rank"], spec={"rank": 8}, codec=codec, **fields)


@pytest.mark.parametrize("codec", CODECS)
def test_a_version_comes_back_in_every_code(store, codec):
    tensors = mixed(1)
    encoded = layout.encode(tensors, codec)
    found = layout.read(store, store.commit(encoded.payload, draft(codec)))
    if load(codec).LOSSLESS:
        assert_same(found, tensors)
    else:
        assert relative_error(tensors, found) == pytest.approx(
            encoded.report.relative_error, abs=1e-6
        )


@pytest.mark.parametrize("codec", CODECS)
def test_every_payload_is_a_file_of_one_grid(tmp_path, codec):
    tensors = mixed(2)
    encoded = layout.encode(tensors, codec)
    file = tmp_path / "payload"
    file.write_bytes(encoded.payload)
    [grid] = open_file(file)
    active = sum(tensor.num_active for tensor in tensors.values())
    assert grid.num_voxels == (active if codec == "raw" else 0)
    if codec != "raw":
        assert len(encoded.payload) < encoded.report.size_bytes + 600


def test_a_raw_payload_is_mapped_and_not_copied(store):
    found = layout.read(store, store.commit(layout.encode(mixed(3), "raw").payload, draft("raw")))
    base = next(iter(found.values())).values
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def chain(store: AdapterStore, length: int):
    """Versions that were each written from the one before."""
    tensors = low_rank(1)
    versions: list[VersionId] = []
    contents = []
    parent: VersionId | None = None
    for number in range(length):
        quantised = layout.read_quantised(store, parent) if parent else None
        encoded = layout.encode(tensors, "neural", parent=quantised)
        assert encoded.report.is_update == (number > 0)
        made = draft("neural", parent=parent, needs_parent=encoded.report.is_update)
        parent = store.commit(encoded.payload, made)
        versions.append(parent)
        contents.append(tensors)
        tensors = moved(tensors, number, 0.02)
    return versions, contents


def test_updates_are_read_through_all_their_parents(store):
    versions, contents = chain(store, 4)
    for version, tensors in zip(versions, contents, strict=True):
        assert relative_error(tensors, layout.read(store, version)) < 0.2
    sizes = [store.manifest(version).payload.size_bytes for version in versions]
    assert max(sizes[1:]) < sizes[0] / 2


def test_what_an_update_needs_outlives_a_collection(store):
    versions, _ = chain(store, 3)
    before = layout.read(store, versions[-1])
    store.create("x", versions[-1])
    assert store.collect(grace=timedelta(0)).versions == ()
    assert_same(layout.read(store, versions[-1]), before)


def test_an_update_of_another_parent_than_its_manifest_names_is_refused(store):
    versions, contents = chain(store, 2)
    other = store.commit(layout.encode(low_rank(9), "neural").payload, draft("neural"))
    with store.open(versions[1]) as file:
        payload = file.read_bytes()
    lying = store.commit(payload, draft("neural", parent=other, needs_parent=True))
    with pytest.raises(IncompatibleAdapterError):
        layout.read(store, lying)
    without = store.commit(payload, draft("neural"))
    with pytest.raises(IncompatibleAdapterError):
        layout.read(store, without)
    exact = store.commit(layout.encode(contents[0], "zstd").payload, draft("zstd"))
    mixed_up = store.commit(payload, draft("neural", parent=exact, needs_parent=True))
    with pytest.raises(CorruptGridError, match="not that of its updates"):
        layout.read(store, mixed_up)


def test_a_chain_without_end_is_refused(store):
    version = store.commit(layout.encode(low_rank(1), "neural").payload, draft("neural"))
    for number in range(neural.MAX_DEPTH + 1):
        made = draft("neural", parent=version, needs_parent=True)
        version = store.commit(b"link", replace(made, provenance={"number": str(number)}))
    with pytest.raises(CorruptGridError, match="over 24 updates"):
        layout.read(store, version)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        write_bytes([], "none"),
        write_bytes([opaque_grid({})]),
        write_bytes([opaque_grid({"stream": b"nonsense"})]),
        write_bytes([opaque_grid({"tensors": b"[[]]"})]),
        write_bytes([opaque_grid({"stream": b"x"})] * 2),
        layout.encode(mixed(1), "raw").payload[:-40],
        layout.encode(mixed(1), "zstd").payload[:-40],
    ],
    ids=["empty", "text", "no grid", "no stream", "nonsense", "table", "two", "cut raw", "cut"],
)
def test_a_payload_that_is_something_else_is_damage(store, codec, payload):
    version = store.commit(payload, draft(codec))
    with pytest.raises((CorruptError, UnsupportedError)):
        layout.read(store, version)


@pytest.mark.parametrize(("codec", "other"), [("raw", "zstd"), ("zstd", "raw"), ("neural", "zstd")])
def test_a_payload_of_another_code_than_the_manifest_says_is_damage(store, codec, other):
    version = store.commit(layout.encode(mixed(1), other).payload, draft(codec))
    with pytest.raises(CorruptGridError):
        layout.read(store, version)


def test_a_code_that_is_not_known_is_named(store):
    version = store.commit(b"x", draft("fractal"))
    with pytest.raises(UnsupportedCodecError, match="fractal"):
        layout.read(store, version)


def test_a_payload_that_was_changed_on_the_disk_is_not_read(store, tmp_path):
    version = store.commit(layout.encode(mixed(1), "raw").payload, draft("raw"))
    [file] = (tmp_path / "adapters" / "payloads").iterdir()
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ChecksumMismatchError):
        layout.read(store, version)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    store = AdapterStore(tmp_path_factory.mktemp("store"))
    yield store
    store.close()


@pytest.fixture(scope="module")
def payloads() -> dict[str, bytes]:
    return {codec: layout.encode(low_rank(1, num_layers=1), codec).payload for codec in CODECS}


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_an_adapter(shared, payloads, codec, place, bit):
    data = bytearray(payloads[codec])
    data[int(place * len(data))] ^= 1 << bit
    version = shared.commit(bytes(data), draft(codec))
    with suppress(CorruptError, UnsupportedError):
        assert all(tensor.size for tensor in layout.read(shared, version).values())
