"""SQL beside HTTP: one runtime, one set of keys."""

import numpy as np
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
