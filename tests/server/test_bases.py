"""Several models behind one server, and `hyprstream ps`."""

import json
import shutil

import pytest

from hyprstream.cli.main import run
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from tests.runtime.adapted_models import commit, make_folder, trained
from tests.server.process import ServerProcess
from tests.server.test_chat import GREEDY, MESSAGES

CHAT = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def two(home):
    """A server of two models without keys, and the second model with an adapter of it."""
    folder = home[0].parent / "two"
    shutil.copytree(home[0], folder, ignore=shutil.ignore_patterns("keys"))
    settings = Settings(home=folder)
    second = Model.load(make_folder(folder / "second", seed=7), settings=settings)
    with open_adapters(settings) as adapters:
        commit(adapters, "guest", second, trained(second, 3))
    with ServerProcess(folder, str(folder / "second")) as server:
        yield server, second


@pytest.fixture
def ps(monkeypatch, capsys, tmp_path):
    """Run `hyprstream ps` in this process; what it printed, and its exit code."""
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "none.toml"))

    def run_it(*options: str) -> tuple[int, str, str]:
        code = run(["ps", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_it


def test_models_are_chosen_by_name_and_loaded_when_they_are_asked_for(two, ps, home):
    server, second = two
    code, out, _ = ps("--url", server.url)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["model", "second"]
    assert "unloaded" in out
    adapted = second.adapted(trained(second, 3))
    expected = {
        "model": home[1].chat(MESSAGES, GREEDY).text,
        "second": second.chat(MESSAGES, GREEDY).text,
        "second:guest": adapted.chat(MESSAGES, GREEDY).text,
        "poet": home[1].adapted(trained(home[1], 1)).chat(MESSAGES, GREEDY).text,
    }
    with server.client() as client:
        states = {m["id"]: m.get("state") for m in client.get("/v1/models").json()["data"]}
        assert states == {"model": "loaded", "poet": None, "team/clerk": None, "second": "unloaded"}
        for name, text in expected.items():
            answer = client.post("/v1/chat/completions", json={**CHAT, "model": name}).json()
            assert answer["choices"][0]["message"]["content"] == text
            assert answer["model"] == name
        by_path = client.post("/v1/inference/second:guest/messages", json=CHAT).json()
        assert by_path["content"][0]["text"] == expected["second:guest"]
        streamed = client.post(
            "/v1/completions",
            json={"model": "second", "prompt": "a", "max_tokens": 2, "stream": True},
        )
        assert streamed.text.endswith("data: [DONE]\n\n")
        found = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert found == ["model", "poet", "team/clerk", "second", "second:guest"]
        assert client.get("/v1/models/second:guest").json()["parent"] == "second"
        for model, status in (("guest", 409), ("second:poet", 409), ("third", 404),
                              ("second:nobody", 404), ("third:poet", 404)):  # fmt: skip
            refused = client.post("/v1/chat/completions", json={**CHAT, "model": model})
            assert refused.status_code == status, refused.text
            if status == 409:
                assert "made for" in refused.json()["error"]["message"]
    code, out, _ = ps("--url", server.url, "--format", "json")
    first, other = json.loads(out)
    assert [found["name"] for found in first["adapters"]] == ["poet"]
    assert [found["name"] for found in other["adapters"]] == ["guest"]
    assert (other["state"], other["num_requests"]) == ("loaded", 0)
    assert other["until"] is not None
    assert first["until"] is None


def test_ps_says_so_when_no_server_runs(ps):
    code, out, err = ps("--url", "http://127.0.0.1:9")
    assert (code, out) == (6, "")
    assert "no server answers at http://127.0.0.1:9" in err
    assert "hyprstream server" in err


def test_ps_needs_a_key_where_there_are_some_and_shows_what_is_the_keys(served, ps, monkeypatch):
    assert ps("--url", served.server.url)[0] == 8
    with served.client() as client:
        client.post("/v1/chat/completions", json={**CHAT, "model": "team/clerk"})
    shown = []
    for key in ("all", "poet"):
        monkeypatch.setenv("HYPRSTREAM_API_KEY", served.keys[key])
        code, out, _ = ps("--url", served.server.url)
        assert code == 0
        shown.append("team/clerk" in out)
    assert shown == [True, False]
