"""`hyprstream auth` on the real runtime, against a Hub on loopback."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.catalog.hub_server import Fault, Hub, hub_serving

TOKEN = "hf_abcdefgh"  # noqa: S105 - of the Hub of this test


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HYPRSTREAM_KEYRING", "false")
    with hub_serving() as hub:
        hub.tokens = {TOKEN: "alice"}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_a_login_is_checked_kept_shown_and_forgotten(hyprstream, hub, tmp_path):
    file = tmp_path / "credentials" / "credentials.json"
    result = hyprstream("auth", "login", "--stdin", stdin=f"{TOKEN}\n")
    assert (result.code, result.out) == (0, "")
    assert result.err == f"logged in to {hub.url} as alice; the token is in {file}\n"
    (status,) = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert status == {
        "provider": "hf",
        "address": hub.url,
        "state": "valid",
        "account": "alice",
        "place": str(file),
        "problem": None,
    }
    heading, row = hyprstream("auth", "status").out.splitlines()[:2]
    assert heading.split() == ["PROVIDER", "ADDRESS", "TOKEN", "ACCOUNT", "WHERE"]
    assert row.split()[2:4] == ["valid", "alice"]
    result = hyprstream("auth", "logout")
    assert (result.code, result.err.split(";")[0]) == (0, "forgot the token of hf")
    assert TOKEN not in file.read_text("utf-8")
    assert "no token of hf" in hyprstream("auth", "logout").err
    (status,) = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert (status["state"], status["place"]) == ("none", None)


@pytest.mark.usefixtures("hub")
def test_a_token_on_the_command_line_is_taken_with_a_warning(hyprstream):
    result = hyprstream("auth", "login", "--provider", "huggingface", "--token", TOKEN)
    assert result.code == 0
    assert "history of the shell" in result.err
    assert TOKEN not in result.err + result.out


def test_a_token_that_is_refused_is_not_kept(hyprstream, hub, tmp_path):
    hyprstream("auth", "login", "--stdin", stdin=TOKEN)
    result = hyprstream("auth", "login", "--stdin", stdin="hf_wrong")
    assert result.code == 8
    assert "does not believe" in result.err
    assert "hf_wrong" not in result.err
    kept = (tmp_path / "credentials" / "credentials.json").read_text("utf-8")
    assert "hf_wrong" not in kept
    assert TOKEN in kept
    hub.tokens.clear()
    (status,) = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert status["state"] == "invalid"
    hub.faults["whoami"] = Fault(status=503)
    (status,) = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert status["state"] == "unchecked"
    assert TOKEN not in json.dumps(status)


def test_the_environment_goes_first_and_the_login_says_so(hyprstream, hub, monkeypatch):
    hub.tokens["hf_other"] = "bob"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    result = hyprstream("auth", "login", "--stdin", stdin=TOKEN)
    assert "another token goes first, the one in HF_TOKEN" in result.err
    (status,) = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert (status["account"], status["place"]) == ("bob", "HF_TOKEN")
    assert "still used, the one in HF_TOKEN" in hyprstream("auth", "logout").err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("login",), 2, "--stdin"),
        (("login", "--stdin", "--token", TOKEN), 2, "exclude"),
        (("login", "--provider", "ollama", "--stdin"), 2, "nobody to log in to"),
        (("login", "--stdin"), 2, "no token"),
        (("logout", "--provider", "nobody"), 2, "nobody"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_what_cannot_be_done_is_said(hyprstream, arguments, code, says):
    result = hyprstream("auth", *arguments)
    assert (result.code, result.out) == (code, "")
    assert says in result.err


def test_offline_nobody_is_asked(hyprstream, hub, monkeypatch):
    hyprstream("auth", "login", "--stdin", stdin=TOKEN)
    hub.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hyprstream("auth", "login", "--stdin", stdin=TOKEN).code == 6
    (status,) = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert status["state"] == "unchecked"
    assert not hub.seen


def test_providers_says_who_takes_tokens(hyprstream, hub):
    result = hyprstream("auth", "providers", "--format", "json")
    assert json.loads(result.out) == [
        {
            "name": "hf",
            "address": hub.url,
            "variables": ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"],
            "page": f"{hub.url}/settings/tokens",
        }
    ]
    assert "ollama://" in result.err
    assert hyprstream("auth", "providers", "--quiet").out == "hf\n"


def test_a_person_types_a_token_that_does_not_show(hub, tmp_path):
    keyboard, terminal = pty.openpty()
    environ = {**os.environ, "HYPRSTREAM_HOME": str(tmp_path), "NO_COLOR": "1", "TERM": "xterm"}
    program = subprocess.Popen(
        [sys.executable, "-m", "hyprstream", "auth", "login"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environ,
        start_new_session=True,
    )
    os.close(terminal)
    seen = _read_until(keyboard, "Token for hf: ")
    os.write(keyboard, f"{TOKEN}\r".encode())
    seen += _read_until(keyboard, "alice")
    assert program.wait(30) == 0
    os.close(keyboard)
    assert f"{hub.url}/settings/tokens" in seen
    assert TOKEN not in seen


def _read_until(keyboard: int, text: str) -> str:
    seen, deadline = "", time.monotonic() + 60
    while text not in seen:
        ready, _, _ = select.select([keyboard], [], [], deadline - time.monotonic())
        assert ready, seen
        seen += os.read(keyboard, 1024).decode()
    return seen


def test_a_registry_of_ones_own_has_a_login_of_its_own(hyprstream, hub, tmp_path, monkeypatch):
    settings = tmp_path / "own.toml"
    settings.write_text(
        f'[registries.acme]\nurl = "{hub.url}"\nlayout = "hf"\ntoken_env = "ACME_TOKEN"\n'
    )
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(settings))
    result = hyprstream("auth", "login", "--provider", "acme", "--stdin", stdin=TOKEN)
    assert f"logged in to {hub.url} as alice" in result.err
    known = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert [(a["provider"], a["state"]) for a in known] == [("hf", "none"), ("acme", "valid")]
    # Another address under the same name does not get the token.
    settings.write_text(settings.read_text("utf-8").replace(hub.url, "https://acme.example"))
    monkeypatch.setenv("HYPRSTREAM_OFFLINE", "true")
    known = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert [(a["provider"], a["state"]) for a in known] == [("hf", "none"), ("acme", "none")]
    monkeypatch.setenv("ACME_TOKEN", TOKEN)
    known = json.loads(hyprstream("auth", "status", "--format", "json").out)
    assert (known[1]["state"], known[1]["place"]) == ("unchecked", "ACME_TOKEN")
