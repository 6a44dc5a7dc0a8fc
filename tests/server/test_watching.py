"""Looking on: events as they come, for those who may see them, and how much the server does."""

import json
from collections.abc import Iterator

import httpx


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


def test_moves_are_told_and_a_stream_goes_on_where_another_ended(client):
    client.post("/v1/adapters", json={"name": "watched"}).raise_for_status()
    with client.stream("GET", "/v1/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        first, data = until(frames(answer), "watched", "create")
        assert data["by"].startswith("key ")
    version = client.get("/v1/adapters/watched").json()["version"]
    body = {"version": version, "why": "again"}
    client.post("/v1/adapters/watched/promote", json=body).raise_for_status()
    with client.stream("GET", "/v1/events", headers={"Last-Event-ID": first}) as answer:
        for _, _, data in frames(answer):  # nothing comes twice
            assert data.get("action") != "create"
            if data.get("adapter") == "watched":
                break
        assert (data["action"], data["version"], data["why"]) == ("promote", version, "again")
    for strange in ("00000000-1", "x", first.partition("-")[0] + "-999999999"):
        with client.stream("GET", "/v1/events", headers={"Last-Event-ID": strange}) as answer:
            assert next(frames(answer))[1] == "reset"


def test_a_key_is_told_of_its_adapters_alone(client, served):
    assert client.get("/v1/events", params={"adapter": "a b"}).status_code == 404
    with served.client("poet") as limited:
        hidden = limited.get("/v1/events", params={"adapter": "team/clerk"})
        assert hidden.status_code == 404
        with limited.stream("GET", "/v1/events") as answer:
            found = frames(answer)
            assert next(found)[2]["adapter"] == "poet"
            # One more of each: the next that this key is told of is its own again.
            for name in ("team/clerk", "poet"):
                version = client.get(f"/v1/adapters/{name}").json()["version"]
                moved = client.post(f"/v1/adapters/{name}/promote", json={"version": version})
                moved.raise_for_status()
            assert next(found)[2] | {"at": 0} == {
                "at": 0, "adapter": "poet", "action": "promote", "version": version,
                "by": next_by(client, "poet"), "why": "",
            }  # fmt: skip
    with client.stream("GET", "/v1/events", params={"adapter": "team/clerk"}) as answer:
        found = frames(answer)
        assert [next(found)[2]["action"] for _ in range(2)] == ["create", "promote"]


def next_by(client: httpx.Client, name: str) -> str:
    return client.get(f"/v1/adapters/{name}/history").json()["data"][-1]["by"]


def test_the_server_tells_what_it_does_and_holds(client):
    before = client.get("/v1/stats").json()
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1900, "ignore_eos": True}
    body |= {"stream": True, "model": "poet"}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
        during = client.get("/v1/stats").json()
    assert during["requests"] == {"open": 1, "running": 1, "waiting": 0}
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
