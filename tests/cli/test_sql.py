"""`hyprstream sql` on this machine and on a server."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from hyprstream.cli.lines import TerminalLines
from tests.flight.conftest import serving


def test_statements_on_this_machine(hyprstream):
    text = "SELECT 1 AS a, DATE '2024-01-02' AS d, NULL AS n, [1.5] AS l"
    result = hyprstream("sql", "-c", text, "--format", "json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == [{"a": 1, "d": "2024-01-02", "n": None, "l": [1.5]}]
    result = hyprstream("sql", "-c", text, "--format", "csv")
    assert result.out == "a,d,n,l\n1,2024-01-02,,[1.5]\n"
    table = hyprstream("sql", "-c", text).out.split()
    assert table == ["A", "D", "N", "L", "1", "2024-01-02", "[1.5]"]


def test_tables_stay_and_lines_come_from_a_pipe(hyprstream):
    lines = "CREATE TABLE t (a INT)\nINSERT INTO t VALUES (4), (5)\n"
    assert hyprstream("sql", stdin=lines).code == 0
    result = hyprstream("sql", "-c", "SELECT sum(a) AS s FROM t", "--format", "yaml")
    assert result.out == "- s: 9\n"


def test_the_tables_of_the_program_are_there(hyprstream):
    text = "SELECT count(*) AS n FROM models, adapters, versions, samples, requests, decisions"
    result = hyprstream("sql", "-c", text, "--format", "json")
    assert json.loads(result.out) == [{"n": 0}]


def test_a_mistake_ends_with_its_code(hyprstream):
    result = hyprstream("sql", "-c", "SELECT * FROM nobody")
    assert result.code == 3
    assert "nobody" in result.err
    assert hyprstream("sql", "-c", "SET threads = 1").code == 8


def test_a_server_is_asked(hyprstream, tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served", "gate") as port:
        host = ("--host", f"127.0.0.1:{port}", "--format", "json")
        assert hyprstream("sql", "-c", "SELECT 1", *host).code == 8
        monkeypatch.setenv("HYPRSTREAM_KEY", "writer-key")
        made = hyprstream("sql", "-c", "CREATE TABLE t AS SELECT ref FROM models", *host)
        assert (made.code, made.err) == (0, "")
        result = hyprstream("sql", "-c", "SELECT * FROM t", *host)
        assert json.loads(result.out) == [{"ref": "pypi://one"}]
        assert hyprstream("sql", "-c", "SELECT * FROM nobody", *host).code == 3
    gone = hyprstream("sql", "-c", "SELECT 1", *host)
    assert gone.code == 6


def test_files_of_the_user_become_tables_and_rows_become_a_file(hyprstream, tmp_path):
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    pa_csv.write_csv(table, tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text('{"a": 7, "b": "z"}\n')
    uploads = [
        part
        for name in ("parquet", "csv", "jsonl")
        for part in ("--upload", f"{name}_rows={tmp_path}/t.{name}")
    ]
    every = " UNION ALL ".join(f"FROM {name}_rows" for name in ("parquet", "csv", "jsonl"))
    text = f"SELECT sum(a) AS s FROM ({every})"  # noqa: S608
    result = hyprstream("sql", *uploads, "-c", text, "--format", "csv")
    assert result.out == "s\n19\n"
    assert "3 rows of" in result.err
    assert hyprstream("sql", "-c", "FROM csv_rows WHERE false", "--format", "csv").out == "a,b\n"
    with (tmp_path / "out.parquet").open("wb") as out:
        program = [sys.executable, "-m", "hyprstream", "sql", "--format", "parquet", "-c",
                   "SELECT a, b FROM parquet_rows"]  # fmt: skip
        subprocess.run(program, stdout=out, check=True)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == table.to_pylist()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--upload", "t"), 2),
        (("--upload", "t=nowhere.csv"), 2),
        (("--upload", "t=nowhere.txt"), 2),
        (("--format", "parquet"), 2),
    ],
)
def test_what_cannot_be_taken_or_given_is_told(hyprstream, options, code):
    result = hyprstream("sql", *options, stdin="SELECT 1\n")
    assert result.code == code
    assert "Traceback" not in result.err


def test_what_was_typed_is_recalled_by_its_owner_alone(tmp_path):
    history = tmp_path / "sql" / "history"
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        lines = TerminalLines("sql> ", history)
        keys.send_text("SELECT 1\r")
        assert lines.read() == "SELECT 1"
        again = TerminalLines("sql> ", history)
        keys.send_text("\x1b[A\r")  # the arrow upwards
        assert again.read() == "SELECT 1"
    assert history.stat().st_mode & 0o077 == 0
