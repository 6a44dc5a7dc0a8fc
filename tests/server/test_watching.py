"""Looking on: events as they come, for those who may see them, and how much the server does."""

import json
import time
from collections.abc import Iterator

import httpx

from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.settings import Settings
from hyprstream.store.records import Note


def frames(answer: httpx.Response) -> Iterator[tuple[str, str, dict]]:
    """Id, kind and data of each frame."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id", ""), fields.get("event", ""), json.loads(fields["data"])
            fields = {}


def until(found: Iterator[tuple[str, str, dict]], adapter: str, action: str) -> tuple[str, dict]:
    for number, _, data in found:
        if data.get("adapter") == adapter and data.get("action") == action:
            return number, data
    raise AssertionError("the stream has ended")


def move(served, name: str) -> str:
    """Let a name point at another version of the same weights, in this process."""
    with open_adapters(Settings(home=served.home)) as adapters:
        codec = "raw" if adapters.info(name).manifest.codec == "zstd" else "zstd"
        return adapters.compress(name, codec, note=Note(by="somebody", why="again")).version


def test_moves_of_any_process_are_told_and_a_stream_goes_on_where_another_ended(client, served):
    client.post("/v1/adapters", json={"name": "watched"}).raise_for_status()
    with client.stream("GET", "/v1/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        first, data = until(frames(answer), "watched", "create")
        assert data["by"].startswith("key ")
    version = move(served, "watched")
    with client.stream("GET", "/v1/events", headers={"Last-Event-ID": first}) as answer:
        for _, _, data in frames(answer):
            assert data["action"] != "create", "nothing comes twice"
            if data["adapter"] == "watched":
                break
        assert data | {"at": 0} == {
            "at": 0, "adapter": "watched", "action": "promote", "version": version,
            "by": "somebody", "why": "again",
        }  # fmt: skip
    for strange in ("00000000-1", "x", first.partition("-")[0] + "-999999999"):
        with client.stream("GET", "/v1/events", headers={"Last-Event-ID": strange}) as answer:
            assert next(frames(answer))[1] == "reset"
    client.delete("/v1/adapters/watched").raise_for_status()


def test_a_key_is_told_of_its_adapters_alone(client, served):
    assert client.get("/v1/events", params={"adapter": "a b"}).status_code == 404
    with served.client("poet") as limited:
        hidden = limited.get("/v1/events", params={"adapter": "team/clerk"})
        assert hidden.status_code == 404
        with limited.stream("GET", "/v1/events") as answer:
            found = frames(answer)
            assert next(found)[2]["action"] == "create"
            versions = [move(served, name) for name in ("team/clerk", "poet")]
            data = next(found)[2]
            assert (data["adapter"], data["version"]) == ("poet", versions[1])
    with client.stream("GET", "/v1/events", params={"adapter": "team/clerk"}) as answer:
        found = frames(answer)
        told = [next(found)[2] for _ in range(2)]
        assert [(one["adapter"], one["action"]) for one in told] == [
            ("team/clerk", "create"), ("team/clerk", "promote"),
        ]  # fmt: skip
    for name in ("team/clerk", "poet"):
        client.post(f"/v1/adapters/{name}/rollback", json={}).raise_for_status()


def test_the_server_tells_what_it_does_and_holds(client):
    before = client.get("/v1/stats").json()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1900, "ignore_eos": True}
    body |= {"stream": True, "model": "poet", "n": 8}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()  # held: without it the connection is closed
        assert '"role"' in next(lines)
        until = time.monotonic() + 20
        while (during := client.get("/v1/stats").json())["requests"]["running"] < 8 or (
            during["tokens"]["generated"] == before["tokens"]["generated"]
        ):
            assert time.monotonic() < until, during  # they begin with the next step
    assert during["requests"] == {"open": 1, "running": 8, "waiting": 0}
    assert during["kv"]["used_blocks"] > 0
    assert during["kv"]["used_bytes"] * during["kv"]["blocks"] == (
        during["kv"]["used_blocks"] * during["kv"]["bytes"]
    )
    assert during["tokens"]["generated"] > before["tokens"]["generated"]
    assert 10 << 20 < during["resident_bytes"] < 100 << 30
    info = {name: client.get(f"/v1/adapters/{name}").json() for name in ("poet", "team/clerk")}
    for size in during["adapters"]:
        if size["name"] in info:
            known = info[size["name"]]
            assert size["stored_bytes"] == known["size_bytes"]
            assert abs(size["compression"] / known["compression"] - 1) < 0.001
