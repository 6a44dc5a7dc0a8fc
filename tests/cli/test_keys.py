"""`hyprstream auth key`, and what `hyprstream server` refuses before it loads a model."""

import json

import pytest


def test_a_key_is_made_listed_and_revoked(hyprstream, tmp_path):
    made = hyprstream("auth", "key", "create", "phone", "--scope", "inference", "--adapter", "poet")
    key = made.out.strip()
    assert (made.code, key[:3], len(key)) == (0, "hs-", 46)
    assert "not shown again" in made.err
    [row] = json.loads(hyprstream("auth", "key", "list", "--format", "json").out)
    assert (row["name"], row["scopes"], row["adapters"]) == ("phone", ["inference"], ["poet"])
    assert key not in hyprstream("auth", "key", "list").out
    assert key not in (tmp_path / "keys" / "keys.json").read_text()
    assert hyprstream("auth", "key", "list", "--quiet").out.strip() == row["id"]
    assert hyprstream("auth", "key", "revoke", row["id"]).code == 2  # nobody is there to be asked
    revoked = hyprstream("auth", "key", "revoke", row["id"], "--yes")
    assert (revoked.code, "phone" in revoked.err) == (0, True)
    assert json.loads(hyprstream("auth", "key", "list", "--format", "json").out) == []
    assert hyprstream("auth", "key", "revoke", row["id"], "--yes").code == 3


def test_a_usual_key_asks_and_gives_feedback(hyprstream):
    hyprstream("auth", "key", "create", "app")
    [row] = json.loads(hyprstream("auth", "key", "list", "--format", "json").out)
    assert (row["scopes"], row["adapters"]) == (["inference", "feedback"], None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "open to everybody"),  # noqa: S104  # is refused
        (["--port", "70000"], "port"),
        (["--tls-cert", "nowhere.pem"], "tls_key"),
        (["--tls-cert", "nowhere.pem", "--tls-key", "nowhere.key"], "TLS"),
        (["--host", "no.such.host.invalid"], "host"),
    ],
    ids=["open", "port", "half", "tls", "host"],
)
def test_a_server_that_cannot_be_is_refused_before_a_model_is_loaded(hyprstream, options, said):
    result = hyprstream("server", "no-such-model", *options)
    assert result.code in (2, 6)
    assert said in result.err
    assert "no-such-model" not in result.err
