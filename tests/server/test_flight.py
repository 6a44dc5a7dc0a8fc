"""SQL beside HTTP: one runtime, one set of keys."""

import json
import sqlite3

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from adbc_driver_flightsql import dbapi

from hyprstream.errors import InvalidSettingsError
from hyprstream.flight.beside import check_config
from hyprstream.runtime.keys import EVERYTHING, KeyFile
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import Settings

HEADER = "adbc.flight.sql.authorization_header"


def connect(served, key, **options):
    given = {HEADER: f"Bearer {served.keys.get(key, key)}", **options}
    return dbapi.connect(served.server.flight, given, autocommit=True)


def ask(served, key, text, values=None):
    with connect(served, key) as opened, opened.cursor() as cursor:
        cursor.execute(text, values)
        return cursor.fetchall()


def test_vectors_are_those_of_http_and_of_python(served, client):
    texts = ["one", "another"]
    for adapter in ("", "poet"):
        body = {
            "input": texts,
            "model": adapter or client.get("/v1/models").json()["data"][0]["id"],
        }
        over_http = [
            row["embedding"] for row in client.post("/v1/embeddings", json=body).json()["data"]
        ]
        for text, vector in zip(texts, over_http, strict=True):
            [(found,)] = ask(served, "inference", "SELECT embed(?, ?)", (text, adapter))
            np.testing.assert_allclose(found, vector, rtol=0, atol=1e-6)
    [(plain, poet)] = ask(served, "inference", "SELECT embed('one'), embed('one', 'poet')")
    assert not np.allclose(plain, poet, atol=1e-4)
    np.testing.assert_allclose(plain, served.model.embed(["one"])[0], rtol=0, atol=1e-5)


def test_text_is_generated_and_the_request_is_a_row(served, client):
    [(text,)] = ask(
        served, "admin", "SELECT generate('one two', adapter := 'poet', max_tokens := 3)"
    )
    expected = client.post(
        "/v1/completions",
        json={"model": "poet", "prompt": "one two", "max_tokens": 3, "temperature": 0},
    )
    assert text == expected.json()["choices"][0]["text"]
    before = ask(served, "admin", "SELECT count(*) FROM requests WHERE adapter = 'poet'")
    once = "SELECT generate('only once', adapter := 'poet', max_tokens := 2)"
    assert ask(served, "admin", once)
    after = ask(served, "admin", "SELECT count(*) FROM requests WHERE adapter = 'poet'")
    assert after[0][0] == before[0][0] + 1
    rows = ask(served, "admin", "SELECT outcome FROM requests WHERE adapter = 'poet'")
    assert ("length",) in rows or ("stop",) in rows


def test_the_keys_are_those_of_http(served):
    names = [("poet",), ("team/clerk",)]
    assert set(ask(served, "inference", "SELECT name FROM adapters")) >= set(names)
    assert ask(served, "poet", "SELECT name FROM adapters") == [("poet",)]
    assert ask(served, "poet", "SELECT DISTINCT adapter FROM versions") == [("poet",)]
    with pytest.raises(dbapi.Error, match="no adapter"):
        ask(served, "poet", "SELECT embed('x', 'team/clerk')")
    with pytest.raises(dbapi.Error, match="leave to write"):
        ask(served, "inference", "CREATE TABLE x AS SELECT 1")
    with pytest.raises(dbapi.Error, match="not for inference"):
        ask(served, "feedback", "SELECT 1")
    for key in ("revoked", "nobody", ""):
        with pytest.raises(dbapi.Error, match=r"not known|needed"):
            ask(served, key, "SELECT 1")


def test_a_session_ends_with_its_key(served):
    file = KeyFile(Settings(home=served.home).keys_folder)
    key, stored = file.create("short", ["inference"])
    options = {"username": "any", "password": key}
    with dbapi.connect(served.server.flight, options, autocommit=True) as opened:
        with opened.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
        file.revoke(stored.id)
        with opened.cursor() as cursor, pytest.raises(dbapi.Error, match="not known"):
            cursor.execute("SELECT 1")


def test_beyond_this_machine_keys_and_tls_are_needed():
    def gate(_):
        return EVERYTHING

    beyond = ServerConfig(host="0.0.0.0", flight_port=0)  # noqa: S104
    for config, known in (
        (beyond, gate),
        (ServerConfig(host="::", tls_cert="x", tls_key="y"), None),
    ):
        with pytest.raises(InvalidSettingsError, match="needs keys and TLS"):
            check_config(config, known)
    check_config(ServerConfig(host="0.0.0.0", tls_cert="x", tls_key="y"), gate)  # noqa: S104
    check_config(ServerConfig(host="::1", flight_port=0), None)
    with pytest.raises(InvalidSettingsError, match="tls_min_version"):
        ServerConfig(flight_port=0, tls_min_version="1.3")


def put(address, key, path, table):
    headers = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {key}".encode())])
    with fl.connect(address) as client:
        descriptor = fl.FlightDescriptor.for_path(*path)
        writer, reader = client.do_put(descriptor, table.schema, headers)
        with writer:
            writer.write_table(table)
            writer.done_writing()
            return json.loads(reader.read().to_pybytes())


def act(served, key, kind, **body):
    token = f"Bearer {served.keys[key]}".encode()
    headers = fl.FlightCallOptions(headers=[(b"authorization", token)])
    with fl.connect(served.server.flight) as client:
        action = fl.Action(kind, json.dumps(body).encode())
        return [json.loads(found.body.to_pybytes()) for found in client.do_action(action, headers)]


@pytest.fixture(scope="module")
def learner(served):
    [made] = act(served, "admin", "CreateAdapter", name="scholar", rank=2, why="a test")
    assert made["name"] == "scholar"
    return made


def test_rows_become_samples_of_an_adapter(served, learner):
    name = learner["name"]
    chats = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]
             for i in range(12)]  # fmt: skip
    kind = pa.list_(pa.struct([("role", pa.utf8()), ("content", pa.utf8())]))
    table = pa.table({"messages": pa.array(chats, kind)})
    told = put(served.server.flight, served.keys["ingest"], (b"samples", name.encode()), table)
    assert told["rows"] == 12
    assert sum(told["counts"].values()) == told["counts"]["waiting"] + told["counts"]["held_out"]
    asked = "SELECT count(*), sum(num_tokens) FROM samples WHERE source = ?"
    [(number, num_tokens)] = ask(served, "inference", asked, (told["source"],))
    assert (number, num_tokens > 0) == (12, True)
    journal = sqlite3.connect(served.home / "learning" / "journal.db")
    kept = journal.execute("SELECT tokens, counts FROM samples WHERE source = ? LIMIT 1",
                           (told["source"],)).fetchall()  # fmt: skip
    journal.close()
    tokens, counts = json.loads(kept[0][0]), kept[0][1]
    assert served.model.tokenizer.decode(tokens, skip_special=False).startswith("user:0?;")
    assert 0 < counts.count("1") < len(tokens)  # the answer alone is learnt


def test_a_client_of_sql_sends_samples(served, learner):
    table = pa.table({"prompt": ["a", "b"], "completion": ["1", "2"], "weight": [1.0, None]})
    name = learner["name"]
    with connect(served, "ingest") as opened, opened.cursor() as cursor:
        sent = cursor.adbc_ingest(name, table, mode="append", db_schema_name="samples")
        assert sent == 2
        again = cursor.adbc_ingest(name, table, mode="append", db_schema_name="samples")
        assert again == 0  # they are there
        wrong = pa.table({"prompt": ["c", "d"], "completion": ["3", None]})
        with pytest.raises(dbapi.Error, match="row 2"):
            cursor.adbc_ingest(name, wrong, mode="append", db_schema_name="samples")
    rows = "SELECT count(*) FROM samples WHERE adapter = 'scholar' AND num_tokens < 8"
    before = ask(served, "inference", rows)
    with pytest.raises(dbapi.Error, match="no adapter"), connect(served, "ingest") as opened:
        opened.cursor().adbc_ingest("nobody", table, mode="append", db_schema_name="samples")
    assert ask(served, "inference", rows) == before


@pytest.mark.parametrize(
    ("key", "name", "error"),
    [("inference", "scholar", fl.FlightUnauthorizedError), ("feedback", "scholar",
     fl.FlightUnauthorizedError), ("poet", "scholar", fl.FlightUnauthorizedError)],
)  # fmt: skip
@pytest.mark.usefixtures("learner")
def test_who_may_not_sends_no_samples(served, key, name, error):
    table = pa.table({"text": ["x"]})
    with pytest.raises(error):
        put(served.server.flight, served.keys[key], (b"samples", name.encode()), table)


def test_an_ingesting_key_for_some_adapters_reaches_no_other(served):
    file = KeyFile(Settings(home=served.home).keys_folder)
    key, stored = file.create("narrow", ["ingest", "admin"], ["poet"])
    table = pa.table({"text": ["something to learn"]})
    with pytest.raises(KeyError, match="team/clerk"):
        put(served.server.flight, key, (b"samples", b"team/clerk"), table)
    assert put(served.server.flight, key, (b"samples", b"poet"), table)["rows"] == 1
    file.revoke(stored.id)


def test_actions_on_adapters_and_what_the_tables_say_then(served, client, learner):
    name, first = learner["name"], learner["version"]
    assert [m["rank"] for m in learner["modules"]][:1] == [2]
    status = act(served, "admin", "TrainAdapter", name=name, learn="feedback", steps_per_day=0)
    assert status[0]["learn"] == "feedback"
    assert client.get(f"/v1/training/{name}/status").json()["learn"] == "feedback"
    assert act(served, "admin", "StopTraining", name=name)[0]["learn"] == "off"
    [promoted] = act(served, "admin", "PromoteAdapter", ref=f"{name}@{first}", why="again")
    assert promoted["version"] == first
    assert act(served, "inference", "AdapterStats", ref=name)[0]["version"] == first
    assert set(act(served, "admin", "CompactStore")[0]) == {"versions", "freed_bytes"}
    moves = "SELECT action FROM events WHERE adapter = 'scholar' AND kind = 'move'"
    assert ("created",) in ask(served, "inference", moves) or ask(served, "inference", moves)
    found = ask(served, "inference", "SELECT version FROM versions WHERE adapter = 'scholar'")
    assert found == [(first,)]
    for table in ("training_runs", "events", "decisions", "requests", "moves", "vector_tables"):
        ask(served, "inference", f"SELECT * FROM {table}")  # noqa: S608


@pytest.mark.parametrize(
    ("key", "kind", "body", "error"),
    [
        ("ingest", "CreateAdapter", {"name": "x"}, fl.FlightUnauthorizedError),
        ("inference", "TrainAdapter", {"name": "poet"}, fl.FlightUnauthorizedError),
        ("ingest", "CompactStore", {}, fl.FlightUnauthorizedError),
        ("poet", "AdapterStats", {"ref": "team/clerk"}, KeyError),
        ("admin", "CreateAdapter", {"name": "poet"}, pa.ArrowException),
        ("admin", "CreateAdapter", {"name": "x", "rank": 0}, pa.ArrowException),
        ("admin", "CreateAdapter", {"name": "x", "other": 0}, pa.ArrowException),
        ("admin", "CreateAdapter", {"name": "../x"}, pa.ArrowException),
        ("admin", "RollbackAdapter", {"name": "poet"}, pa.ArrowException),
        ("admin", "PromoteAdapter", {"ref": "poet@0000"}, KeyError),
    ],
)
def test_actions_that_are_refused(served, key, kind, body, error):
    with pytest.raises(error) as caught:
        act(served, key, kind, **body)
    assert "internal" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
