"""`hyprstream sql` on this machine and on a server."""

import json

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
