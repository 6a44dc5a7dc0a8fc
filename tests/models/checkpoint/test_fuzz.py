"""Whatever the bytes, a reader accepts or raises one of two errors, soon, and reads no further.

What it accepts is read completely, so a range beyond the file would show.
"""

import itertools
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptWeightsError, UnsupportedFormatError
from hyprstream.models.checkpoint import SafetensorsFile, open_checkpoint
from tests.models.checkpoint import forge
from tests.models.checkpoint.judge import read_all

BOUNDED = settings(
    deadline=2000, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Values at which sizes overflow, change sign or run past the end of something.
SIZES = (0, 1, 2, 3, 4, 7, 8, 31, 32, 33, 64, 96, 255, 256, 1000, 2**16)
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
U64S = st.sampled_from(SIZES + HUGE)
NAMES = st.sampled_from(["a", "b", "c.weight", "\u00e9", "", "general.alignment", "split.count"])


@pytest.fixture(scope="module")
def fresh_files() -> Iterator[Iterator[Path]]:
    """A new file name each time: a file that is still mapped must not be rewritten."""
    with tempfile.TemporaryDirectory() as folder:
        yield (Path(folder) / str(number) for number in itertools.count())


def problem(file: Path, data: bytes) -> str:
    """What is wrong with `data`; empty if it is accepted. Any other error fails the test."""
    file.write_bytes(data)
    try:
        read_all(open_checkpoint(file))
    except (CorruptWeightsError, UnsupportedFormatError) as error:
        message = str(error)
        assert message
        assert len(message) < 2500
        assert "\n" not in message
        return message
    finally:
        file.unlink()
    return ""


@st.composite
def mutations(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound` with a few bytes flipped, cut, doubled or replaced by a telling number."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(at + draw(st.integers(1, 16)), len(data))
        match draw(st.sampled_from(["byte", "u32", "u64", "cut", "drop", "double", "digits"])):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "u32":
                data[at : at + 4] = struct.pack("<I", draw(U64S) % 2**32)
            case "u64":
                data[at : at + 8] = struct.pack("<Q", draw(U64S))
            case "cut":
                del data[at:]
            case "drop":
                del data[at:end]
            case "double":
                data[at:at] = data[at:end]
            case _:
                data[at:end] = str(draw(U64S)).encode()
    return bytes(data)


@st.composite
def payloads(draw: st.DrawFn, kind: int, depth: int = 0) -> bytes:
    """A metadata value of the type `kind`, right or nearly so."""
    if kind == forge.STRING:
        data = draw(st.binary(max_size=12))
        return struct.pack("<Q", draw(st.just(len(data)) | U64S)) + data
    if kind == forge.ARRAY:
        inner = draw(st.integers(0, 13 if depth < 6 else 8))
        items = draw(st.lists(payloads(inner, depth + 1), max_size=3))
        return forge.array(inner, items, count=draw(st.just(len(items)) | U64S))
    return draw(st.binary(min_size=1, max_size=8) | U64S.map(lambda size: struct.pack("<Q", size)))


@st.composite
def gguf_files(draw: st.DrawFn) -> bytes:
    """A GGUF file of plausible parts that need not fit together."""
    entries = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 13))
        entries.append(forge.entry(draw(NAMES), kind, draw(payloads(kind))))
    tensors = [
        forge.tensor(
            draw(NAMES), draw(st.lists(U64S, max_size=5)), draw(st.integers(0, 43)), draw(U64S)
        )
        for _ in range(draw(st.integers(0, 3)))
    ]
    return forge.gguf(
        entries,
        tensors,
        bytes(draw(st.sampled_from(SIZES))),
        version=draw(st.sampled_from([2, 3, 3, 3, 0, 1, 99])),
        num_tensors=draw(st.just(len(tensors)) | U64S),
        num_entries=draw(st.just(len(entries)) | U64S),
    )


@st.composite
def small_tables(draw: st.DrawFn) -> bytes:
    """A GGUF file whose header is right and whose tensors may lie anywhere."""
    tensors = [
        forge.tensor(
            name,
            draw(st.lists(st.sampled_from([0, 1, 2, 32, 64]), max_size=4)),
            draw(st.sampled_from([0, 1, 2, 3, 8, 24, 28, 30])),
            32 * draw(st.integers(0, 8)),
        )
        for name in "abc"[: draw(st.integers(1, 3))]
    ]
    return forge.gguf([], tensors, bytes(512))


JUNK: st.SearchStrategy[object] = st.sampled_from(
    [None, True, -1, 1.0, "F32", [], {}, [0], [0, 4], 2**64]
)


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """A safetensors file of tensors laid end to end, with a few values that may be wrong."""
    header: dict[str, object] = {}
    end = 0
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        kind, itemsize = draw(st.sampled_from([("F32", 4), ("U8", 1), ("I64", 8), ("Q9", 2)]))
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3))
        size = itemsize
        for dim in shape:
            size *= dim
        start = end + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        end = start + size
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        if draw(st.integers(0, 9)) == 0:
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))
            header[name] = {**header[name], field: draw(JUNK | U64S | st.lists(U64S, max_size=3))}  # type: ignore[dict-item]
    if draw(st.booleans()):
        header["__metadata__"] = draw(JUNK | st.just({"format": "pt"}))
    raw = json.dumps(header).encode() + b" " * draw(st.integers(0, 3))
    length = len(raw) + draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1]))
    return forge.safetensors(raw, bytes(max(end, 0)), length=length)


@BOUNDED
@given(data=st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"GGUF" + tail))
def test_any_bytes_are_judged(fresh_files, data):
    problem(next(fresh_files), data)


@BOUNDED
@given(data=mutations(forge.sound_gguf()))
def test_mutated_gguf_file_is_judged(fresh_files, data):
    problem(next(fresh_files), data)


@BOUNDED
@given(data=gguf_files() | small_tables())
def test_gguf_file_of_ill_fitting_parts_is_judged(fresh_files, data):
    problem(next(fresh_files), data)


def test_gguf_file_cut_anywhere_is_damaged(tmp_path):
    sound = forge.sound_gguf()
    for length in range(1, len(sound)):
        assert problem(tmp_path / str(length), sound[:length]), length


def test_safetensors_file_cut_anywhere_is_damaged(tmp_path):
    sound = forge.sound_safetensors()
    for length in range(1, len(sound)):
        assert problem(tmp_path / str(length), sound[:length]), length


# Where this reader is stricter than the reference implementation, with open eyes.
STRICTER = (
    "appears twice",  # the reference keeps the last of two metadata keys
    "does not begin with",  # the reference skips blanks
    "impossible shape",  # no element, but torch cannot hold the strides
    "__metadata__",  # the reference takes null for none
    "described by an object",  # the reference takes a list of the three fields
    "holds",  # 1.0 and -1 in fields that the reference does not look at
    "not a safetensors file",  # the file has the mark of another format
)


@BOUNDED
@given(data=safetensors_files() | mutations(forge.sound_safetensors()))
def test_verdict_on_a_safetensors_file_is_that_of_the_reference(fresh_files, data):
    ours = problem(next(fresh_files), data)
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        assert ours
        return
    assert not ours or any(reason in ours for reason in STRICTER), ours
    if not ours:
        file = next(fresh_files)
        file.write_bytes(data)
        checkpoint = SafetensorsFile.open(file)
        stored = {name: (entry["shape"], bytes(entry["data"])) for name, entry in tensors}
        assert stored == {
            name: (
                list(checkpoint.info(name).shape),
                checkpoint.blocks(name).numpy().tobytes(),
            )
            for name in checkpoint.names()
        }
        file.unlink()
