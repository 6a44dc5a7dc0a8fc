"""What a manifest admits, how it is written, and for which model a version is."""

import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.refs import ModelFingerprint
from hyprstream.store.manifest import MAX_BYTES, Manifest, Payload, check_base, decode
from tests.store.fakes import BASE, draft

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
PAYLOAD = Payload(sha256="c" * 64, size_bytes=7)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
KEYS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,20}", fullmatch=True)
PARTS = st.fixed_dictionaries(
    {
        "spec": st.dictionaries(
            KEYS, SCALARS | st.lists(SCALARS, max_size=4).map(tuple), max_size=5
        ),
        "metrics": st.dictionaries(
            KEYS, st.floats(allow_nan=False, allow_infinity=False), max_size=5
        ),
        "provenance": st.dictionaries(KEYS, TEXTS, max_size=5),
    }
)


def manifest(**changes: Any) -> Manifest:
    return replace(draft(), **changes).complete(PAYLOAD, NOW)


def edited(**changes: Any) -> bytes:
    """A manifest as somebody else might have written it."""
    plain = json.loads(manifest().encode()) | changes
    plain = {key: value for key, value in plain.items() if value is not ...}
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


@given(PARTS)
@settings(max_examples=30)
def test_a_manifest_survives_being_written_and_read(parts: dict[str, Any]):
    made = manifest(**parts)
    assert decode(made.encode()) == made
    assert decode(made.encode()).encode() == made.encode()
    assert {key: getattr(made, key) for key in parts} == parts


@given(PARTS)
@settings(max_examples=30)
def test_the_canonical_way_is_that_of_the_json_module(parts: dict[str, Any]):
    """Sorted, without spaces, in ASCII: what anybody gets who reads it and writes it so."""
    written = manifest(**parts).encode()
    again = json.dumps(json.loads(written), sort_keys=True, separators=(",", ":"))
    assert written == again.encode("ascii")


def test_a_version_is_the_hash_of_its_manifest():
    made = manifest()
    assert made.version == hashlib.sha256(made.encode()).hexdigest()
    assert made.version == manifest().version
    for changes in ({"codec": "zstd"}, {"metrics": {"loss": 1}}, {"parent": "1" * 64}):
        assert manifest(**changes).version != made.version


def test_a_manifest_cannot_be_changed():
    made = manifest(metrics={"loss": 1.5})
    with pytest.raises(ValueError, match="frozen"):
        made.codec = "zstd"  # type: ignore[misc]  # what a careless caller might try
    with pytest.raises(TypeError):
        made.metrics["loss"] = 0.0  # type: ignore[index]  # same


HOSTILE = [
    b"",
    b"\xff",
    b"null",
    b"[" * 100_000,
    b'{"base":' * 20_000,
    b"9" * 100_000,
    b'"' + b"x" * (MAX_BYTES + 1) + b'"',
    manifest().encode() + b" ",
    manifest().encode().replace(b'"codec":"raw"', b'"codec":"raw","codec":"raw"'),
    manifest().encode().replace(b'"rank":8', b'"rank":NaN'),
    manifest().encode().replace(b'"rank":8', b'"rank":1e999'),
    manifest().encode().replace(b'"rank":8', b'"rank":8' + b"0" * 5000),
    manifest().encode().replace(b'"rank":8', b'"rank":"\\ud800"'),
    edited(unknown=1),
    edited(format=2),
    edited(format=True),
    edited(base=...),
    edited(base="tiny"),
    edited(base={"name": "tiny"}),
    edited(codec="../zstd"),
    edited(codec=...),
    edited(kinds=[]),
    edited(kinds=["x"] * 17),
    edited(parent="1" * 63),
    edited(parent="../../" + "1" * 58),
    edited(needs_parent=True),
    edited(needs_parent="no"),
    edited(payload={"sha256": "C" * 64, "size_bytes": 7}),
    edited(payload={"sha256": "c" * 64, "size_bytes": -1}),
    edited(payload={"sha256": "c" * 64, "size_bytes": 1 << 63}),
    edited(payload={"sha256": "c" * 64 + "\n", "size_bytes": 1}),
    edited(spec={"rank": {"deep": 1}}),
    edited(spec={"rank": [[1]]}),
    edited(spec={"rank": 1 << 63}),
    edited(spec={"": 1}),
    edited(spec={"a b": 1}),
    edited(spec={"x" * 129: 1}),
    edited(spec={str(number): 1 for number in range(257)}),
    edited(spec={"targets": ["x"] * 16_385}),
    edited(metrics={"loss": "low"}),
    edited(provenance={"from": 1}),
    edited(provenance={"from": "x" * 4_097}),
    edited(created="yesterday"),
    edited(created="2026-05-04T03:02:01.000000"),
    edited(created="2026-05-04T03:02:01.000000+02:00"),
    edited(created="2026-05-04T03:02:01.000000Z"),
    edited(created=0),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_manifest_that_is_not_sound_is_refused_in_few_words(content: bytes):
    with pytest.raises(InvalidAdapterError, match="manifest of the adapter is not valid") as caught:
        decode(content)
    assert len(str(caught.value)) < 600


@given(st.data())
def test_any_bytes_are_a_manifest_or_an_invalid_one(data: st.DataObject):
    """A sound manifest, a stretch of which became something else."""
    content = bytearray(manifest().encode())
    start, stop = sorted(data.draw(st.integers(0, len(content))) for _ in range(2))
    content[start:stop] = data.draw(st.binary(max_size=stop - start + 1))
    _is_sound_or_invalid(bytes(content))


def _is_sound_or_invalid(content: bytes) -> None:
    try:
        found = decode(content)
    except InvalidAdapterError:
        return
    assert found.encode() == content


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"targets": tuple("x" * 4000 for _ in range(100))}},
        {"spec": {"rank": math.nan}},
        {"metrics": {"loss": math.inf}},
        {"provenance": {"from": "\ud800"}},
        {"kinds": ["Low Rank"]},
        {"parent": "1"},
        {"needs_parent": True},
        {"base": replace(BASE, weights_sha256="")},
        {"base": replace(BASE, name="")},
    ],
    ids=str,
)
def test_a_draft_that_makes_no_sound_manifest_is_refused(changes: dict[str, Any]):
    with pytest.raises(InvalidAdapterError, match="is not valid"):
        manifest(**changes)


def test_times_are_utc():
    local = datetime(2026, 5, 4, 5, 2, 1, tzinfo=timezone(timedelta(hours=2)))
    for time in (local, local.replace(tzinfo=None)):
        with pytest.raises(InvalidAdapterError, match=r"created: .*UTC"):
            draft().complete(PAYLOAD, time)


def test_a_version_is_for_the_model_that_it_was_made_for():
    assert check_base(manifest(), BASE) is None
    assert check_base(manifest(), replace(BASE, name="moved elsewhere")) is None


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (replace(BASE, weights_sha256="d" * 64), "other weights of the same architecture"),
        (replace(BASE, config_sha256="d" * 64), "another architecture"),
    ],
)
def test_another_model_is_refused_and_both_are_named(other: ModelFingerprint, differs: str):
    with pytest.raises(IncompatibleAdapterError) as caught:
        check_base(manifest(), replace(other, name="large"))
    message = str(caught.value)
    assert "made for tiny (config aaaaaaaaaaaa, weights bbbbbbbbbbbb)" in message
    assert "this model is large (config " in message
    assert "dddddddddddd" in message
    assert differs in message
    warning = check_base(manifest(), replace(other, name="large"), force=True)
    assert warning is not None
    assert warning.startswith(message)
    assert "added all the same" in warning
