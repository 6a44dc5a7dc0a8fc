"""Files of rows, and files that are none: JSON lines, Parquet, plain text."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from hyprstream.errors import InvalidDatasetError
from hyprstream.train.dataset import read_samples
from hyprstream.train.rows import MAX_LINE_BYTES, read_rows
from tests.train.makers import SPM, maker, write


def test_real_files_are_read(test_data):
    corpora = test_data / "corpora"
    found = read_samples(corpora / "wikisql_mlx" / "valid.jsonl", maker(SPM))
    lines = (corpora / "wikisql_mlx" / "valid.jsonl").read_text().splitlines()
    assert len(found) == len(lines)
    assert json.loads(lines[0])["text"] in SPM.decode(found[0].token_ids)


def test_empty_lines_and_a_byte_order_mark_are_skipped(tmp_path):
    file = write(tmp_path, b'\xef\xbb\xbf{"text": "one two"}', b"", b"  \r", {"text": "three"})
    assert len(read_samples(file, maker(SPM))) == 2


SOUND = {"text": "one two"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff", "no JSON"),
        (b'{"text": NaN}', "NaN"),
        (b"[" * 100_000, "no JSON"),
        (b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}', "longer than"),
        ({}, "neither messages"),
        ({"text": 3}, "text is no text"),
        ({"text": ""}, "cannot be learnt"),
        (b'{"text": "\\ud800"}', "surrogate"),
        ({"prompt": "a"}, "completion is missing"),
        ({"prompt": "a" * 3000, "completion": "b"}, "more than 500"),
        ({"instruction": "a", "output": None}, "output is missing"),
        ({"messages": []}, "no list of 1 to"),
        ({"messages": "hi"}, "no list of 1 to"),
        ({"messages": [{"role": "user", "content": "a"}]}, "cannot be learnt"),
        ({"messages": [{"role": "user", "content": 3}]}, "content"),
        ({"messages": [{"role": "user", "content": "a"}] * 257}, "no list of 1 to"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, problem):
    file = write(tmp_path, SOUND, SOUND, line)
    with pytest.raises(InvalidDatasetError, match=problem) as failure:
        read_samples(file, maker())
    assert failure.value.line == 3
    assert failure.value.file == str(file)
    assert f"{file}, line 3: " in str(failure.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", ""])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES | JSON, "content": JSON}), max_size=4)
KEYS = st.sampled_from(["messages", "instruction", "input", "output", "prompt", "completion"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(KEYS, JSON | MESSAGES).map(lambda value: json.dumps(value).encode())
)
def test_any_file_gives_samples_or_names_what_is_wrong(tmp_path, data: bytes):
    file = tmp_path / "any.jsonl"
    file.write_bytes(data)
    try:
        found = read_samples(file, maker())
    except InvalidDatasetError:  # and nothing else
        return
    assert all(sample.num_computed <= 500 for sample in found)


def test_files_that_are_none_and_files_without_end_are_refused(tmp_path):
    with pytest.raises(InvalidDatasetError, match="cannot be read"):
        read_samples(tmp_path / "missing.jsonl", maker())
    with pytest.raises(InvalidDatasetError, match="no samples"):
        read_samples(write(tmp_path, b""), maker())
    with pytest.raises(InvalidDatasetError, match="more than 2 samples") as failure:
        read_samples(write(tmp_path, SOUND, SOUND, SOUND, b"{"), maker(), max_samples=2)
    assert failure.value.line == 3


def test_a_text_file_is_one_text(tmp_path):
    file = tmp_path / "play.txt"
    file.write_text("\ufeffone two\n\nthree\n", "utf-8")
    (row,) = read_rows(file)
    assert row.values == {"text": "one two\n\nthree\n"}
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidDatasetError, match="UTF-8"):
        list(read_rows(file))


def table(folder: Path, rows: list[dict], name: str = "rows.parquet", **options) -> Path:
    file = folder / name
    parquet.write_table(pa.Table.from_pylist(rows), file, **options)
    return file


def test_a_table_gives_the_rows_that_json_lines_give(tmp_path):
    chat = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    rows = [
        {"messages": chat, "id": 1},
        {"messages": [*chat, *chat[:1], {"role": "assistant", "content": "d"}], "id": 2},
    ]
    from_table = read_samples(table(tmp_path, rows), maker())
    assert from_table == read_samples(write(tmp_path, *rows), maker())
    assert len(from_table) == 2


def test_only_columns_that_mean_something_are_read(tmp_path):
    rows = [{"text": "one two", "when": b"\x00", "embedding": [0.5] * 9}]
    (row,) = read_rows(table(tmp_path, rows))
    assert (row.number, row.unit, row.values) == (1, "row", {"text": "one two"})


def test_the_row_of_a_table_that_is_no_record_is_named(tmp_path):
    file = table(tmp_path, [{"text": "a b"}, {"text": None}])
    with pytest.raises(InvalidDatasetError, match="row 2: text is missing") as failure:
        read_samples(file, maker())
    assert (failure.value.line, failure.value.unit) == (2, "row")
    file = table(tmp_path, [{"text": b"bytes"}])
    with pytest.raises(InvalidDatasetError, match="row 1: text is no text"):
        read_samples(file, maker())


def test_a_table_that_unpacks_to_gigabytes_is_refused(tmp_path):
    megabyte = "a" * (1 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int32()), [megabyte])
    file = tmp_path / "bomb.parquet"
    parquet.write_table(pa.table({"text": column}), file, compression="zstd")
    assert file.stat().st_size < 1 << 20
    with pytest.raises(InvalidDatasetError, match="unpacks to more than"):
        list(read_rows(file))


@pytest.mark.parametrize("where", ["head", "middle", "tail", "cut"])
def test_damaged_tables_are_refused(tmp_path, where):
    rows = [{"prompt": f"what is {n}", "completion": "a number"} for n in range(300)]
    file = table(tmp_path, rows)
    data = bytearray(file.read_bytes())
    size = len(data)
    at = {"head": 8, "middle": size // 3, "tail": size - 40, "cut": 0}[where]
    if where == "cut":
        del data[size // 2 :]
    else:
        data[at : at + 24] = bytes(byte ^ 0xA5 for byte in data[at : at + 24])
    file.write_bytes(data)
    try:
        found = read_samples(file, maker())
    except InvalidDatasetError:
        return
    assert where in ("middle", "tail"), "only values and notes may be other ones"
    assert len(found) == 300
