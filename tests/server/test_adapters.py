"""Adapters over HTTP: made, moved, taken in and given out, and what users say of their answers."""

import shutil
import time

import pytest

from hyprstream.refs import AdapterName
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.learning_report import learning_status
from hyprstream.runtime.settings import Settings
from tests.runtime.adapted_models import commit, trained
from tests.server.process import ServerProcess
from tests.server.tiny import make_home

ASK = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 12}


def said(client, model: str, **options) -> str:
    answer = client.post("/v1/chat/completions", json={**ASK, "model": model, **options})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


@pytest.fixture(params=["/v1/adapters", "/v1/lora/create"])
def fresh(client, request):
    """An adapter that is there for one test."""
    spec = {"name": "fresh", "rank": 4, "alpha": 8, "target_modules": ["all"]}
    answer = client.post(request.param, json=spec)
    assert answer.status_code == 201, answer.text
    yield answer.json()
    client.delete("/v1/adapters/fresh")


def test_an_adapter_is_made_shown_and_deleted(client, fresh):
    assert fresh["name"] == "fresh"
    assert fresh["spec"]["rank"] == 4
    assert fresh["base"]["name"] == "model"
    assert client.get("/v1/adapters/fresh").json() == fresh
    assert client.get("/v1/lora/fresh/info").json() == fresh
    assert client.get(f"/v1/adapters/fresh@{fresh['version'][:8]}").json() == fresh
    for path in ("/v1/adapters", "/v1/lora/list"):
        names = [adapter["name"] for adapter in client.get(path).json()["data"]]
        assert {"fresh", "poet", "team/clerk"} <= set(names)  # and what other tests have made
    assert client.post("/v1/adapters", json={"name": "fresh"}).status_code == 409
    assert said(client, "fresh") == said(client, "model")  # it adds nothing yet
    stats = client.get("/v1/adapters/fresh/stats").json()
    assert stats == client.get("/v1/lora/fresh/stats").json()
    assert {module["norm"] for module in stats["modules"]} == {0.0}
    gone = client.delete("/v1/lora/fresh/delete").json()
    assert (gone["deleted"], gone["versions"]) == (True, 1)
    assert client.get("/v1/adapters/fresh").status_code == 404
    assert client.post("/v1/chat/completions", json={**ASK, "model": "fresh"}).status_code == 404


def test_bad_adapters_are_refused(client):
    for change in (
        {"name": "../x"}, {"name": "a b"}, {"rank": 0}, {"alpha": 0}, {"kind": "magic"},
        {"target_modules": ["nothing"]}, {"sparsity": 1}, {"extra": 1},
    ):  # fmt: skip
        answer = client.post("/v1/adapters", json={"name": "bad", **change})
        assert answer.status_code == 400, answer.text
    assert client.get("/v1/adapters/bad").status_code == 404


def test_a_promotion_and_its_rollback_are_exact(client, served):
    settings = Settings(home=served.home)
    with open_adapters(settings) as adapters:
        first = commit(adapters, "mover", served.model, trained(served.model, 3)).version
        second = commit(adapters, "other", served.model, trained(served.model, 4)).version
        before = said(client, "mover")
        adapters.move("mover", second, expected=first)
    after = said(client, "mover")
    assert before != after
    back = client.post("/v1/adapters/mover/rollback", json={"why": "worse"}).json()
    assert back == {"name": "mover", "version": first}
    assert said(client, "mover") == before
    assert said(client, f"mover@{second[:12]}") == after
    answer = client.post("/v1/adapters/mover/promote", json={"version": second[:12]})
    assert answer.json() == {"name": "mover", "version": second}
    assert said(client, "mover") == after
    moves = client.get("/v1/adapters/mover/history").json()["data"]
    assert [move["action"] for move in moves] == ["create", "promote", "rollback", "promote"]
    assert moves[2]["why"] == "worse"
    assert moves[2]["by"].startswith("key ")
    for body in ({}, {"version": "0000"}, {"tag": "none"}, {"version": first, "tag": "x"}):
        answer = client.post("/v1/adapters/mover/promote", json=body)
        assert answer.status_code in (400, 404)
    for name in ("mover", "other"):
        assert client.delete(f"/v1/adapters/{name}").status_code == 200


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_what_is_given_out_can_be_taken_in_and_says_the_same(client, kind):
    given = client.get("/v1/adapters/poet/export", params={"format": kind})
    assert given.status_code == 200, given.text
    assert f"poet.{kind}" in given.headers["content-disposition"]
    taken = client.post("/v1/adapters/team/copy/import", content=given.content)
    try:
        assert taken.status_code == 201, taken.text
        assert taken.json()["coverage"]["complete"]
        assert said(client, "team/copy") == said(client, "poet")
    finally:
        client.delete("/v1/adapters/team/copy")


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_bytes_of_a_damaged_file_are_not_given_out(client, served, kind):
    def files():
        return {file for file in served.home.joinpath("adapters").rglob("*") if file.is_file()}

    before = files()
    with open_adapters(Settings(home=served.home)) as adapters:
        commit(adapters, "spoiled", served.model, trained(served.model, 5 + len(kind)))
    try:
        blob = max(files() - before, key=lambda file: file.stat().st_size)
        blob.chmod(0o600)
        content = bytearray(blob.read_bytes())
        content[-5] ^= 1
        blob.write_bytes(content)
        answer = client.get("/v1/adapters/spoiled/export", params={"format": kind})
        assert answer.status_code == 500, answer.text
        error = answer.json()["error"]
        assert "hash is not the one" in error["message"]
        assert str(served.home) not in answer.text
    finally:
        assert client.delete("/v1/adapters/spoiled").status_code == 200


def test_what_is_no_adapter_is_not_taken_in(client):
    for content in (b"", b"GGUF", b"nonsense", b"\x80\x04pickle", b"\xff" * 100):
        answer = client.post("/v1/adapters/bad/import", content=content)
        assert 400 <= answer.status_code < 500, answer.text
        assert "/tmp" not in answer.text  # noqa: S108  # a path is what is looked for
    assert client.post("/v1/adapters/poet/import", content=b"x").status_code == 409
    assert client.get("/v1/adapters/bad").status_code == 404


def status_of(client, name="poet"):
    return client.get(f"/v1/training/{name}/status").json()


def wait_for_samples(client, number: int) -> None:
    until = time.monotonic() + 20
    while True:
        samples = status_of(client)["samples"]
        if samples["waiting"] + samples["held_out"] == number:
            return
        assert time.monotonic() < until, samples


@pytest.mark.timeout(120)
def test_answers_that_users_correct_are_learnt_from_and_survive_a_kill(tmp_path):
    home = tmp_path / "home"
    make_home(home)
    with ServerProcess(home) as server, server.client() as client:
        assert status_of(client)["learn"] == "off"
        before = client.post("/v1/chat/completions", json={**ASK, "model": "poet"}).json()["id"]
        started = client.post("/v1/training/poet/start", json={"learn": "feedback",
                                                               "steps_per_day": 0})  # fmt: skip
        assert started.status_code == 200, started.text
        assert started.json()["learn"] == "feedback"

        def ask(number: int, **options) -> str:
            messages = [{"role": "user", "content": f"Question {number} of many."}]
            body = {**ASK, "messages": messages, "model": "poet", **options}
            answer_id: str = client.post("/v1/chat/completions", json=body).json()["id"]
            return answer_id

        def say(answer: str, **what) -> str:
            got = client.post("/v1/feedback", json={"id": answer, **what})
            return got.json().get("recorded", got.json().get("error", {}).get("code"))

        corrected = [ask(number) for number in range(4)]
        for number, answer in enumerate(corrected):
            outcome = say(answer, correction=f"A good answer to question {number}, really.")
            assert outcome in ("waiting", "held_out")
        wait_for_samples(client, 4)
        # An answer that was cut off is complete for nobody; thumbs alone do not make it so.
        assert say(ask(10), thumbs="up") == "incomplete"
        assert say(ask(11), thumbs="down") == "withdrawn"
        assert say(ask(12, learn=False), correction="Not to be learnt.") == "withdrawn"
        second = ask(13, n=2)
        assert say(second, index=1, score=0.2) == "withdrawn"
        assert say(second, index=5, thumbs="up") == "answer_not_found"
        assert say(before, correction="It was not learning then.") == "withdrawn"
        assert say("chatcmpl-0", thumbs="up") == "answer_not_found"
        assert say(corrected[0], thumbs="up", score=1) == "invalid_request"
        assert say(corrected[0], thumbs="down") == "withdrawn"
        wait_for_samples(client, 3)
        assert client.post("/v1/training/nobody/start", json={}).status_code == 404
        server.process.kill()
        server.process.wait(10)
    settings = Settings(home=home)
    with open_adapters(settings) as adapters:
        [status] = learning_status(adapters, settings, "poet")
    assert status.samples.waiting + status.samples.held_out == 3
    assert status.policy.learn == "feedback"


@pytest.mark.timeout(120)
def test_a_server_that_does_not_learn_says_so(home, tmp_path):
    folder, _ = home
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("keys", "learning"))
    off = {"HYPRSTREAM_TRAIN__ENABLED": "false"}
    with ServerProcess(alone, **off) as server, server.client() as client:
        assert said(client, "poet")
        answer = client.post("/v1/feedback", json={"id": "chatcmpl-0", "thumbs": "up"})
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "learning_is_off"
        assert client.post("/v1/training/poet/start", json={}).status_code == 409
        assert client.get("/v1/training/poet/status").status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_corrections_become_a_version_or_are_told_why_not(tmp_path):
    """The whole way over HTTP: feedback, the loop beside serving, a decision and its numbers."""
    home = tmp_path / "home"
    make_home(home)
    environment = {
        "HYPRSTREAM_TRAIN__LEARNER__MIN_WAITING": "12",
        "HYPRSTREAM_TRAIN__LEARNER__MIN_HELD_OUT": "8",
        "HYPRSTREAM_TRAIN__GATE__MIN_HELD_OUT": "8",
        "HYPRSTREAM_TRAIN__BUFFER__HELD_OUT_SHARE": "0.3",
    }
    with ServerProcess(home, **environment) as server, server.client() as client:
        first = client.get("/v1/adapters/poet").json()["version"]
        before = said(client, f"poet@{first[:12]}")
        client.post("/v1/training/poet/start", json={"learn": "feedback"}).raise_for_status()
        for number in range(48):
            messages = [{"role": "user", "content": f"Count from {number}."}]
            answer = client.post(
                "/v1/chat/completions", json={**ASK, "messages": messages, "model": "poet"}
            ).json()
            words = " ".join(str(number + step) for step in range(6))
            told = {"id": answer["id"], "correction": words}
            assert client.post("/v1/feedback", json=told).status_code == 200
        until = time.monotonic() + 120
        while not (decisions := status_of(client)["decisions"]):
            assert time.monotonic() < until, server.log
            said(client, "poet", max_tokens=2)
        decision = decisions[-1]
        assert decision["action"] in ("published", "rejected"), decision
        assert decision["parent"] == first
        assert decision["numbers"]["samples"] >= 12
        now = client.get("/v1/adapters/poet").json()
        if decision["action"] == "published":
            assert (now["version"], now["parent"]) == (decision["version"], first)
            client.post("/v1/adapters/poet/rollback", json={}).raise_for_status()
        else:
            assert decision["reasons"]
            assert now["version"] == first
        # Whatever came of it, what was there before says the same bits.
        assert said(client, "poet") == before
        assert "Traceback" not in server.log


def test_a_canary_answers_users_always_alike_and_ends_when_its_name_is_moved(served, client):
    client.post("/v1/adapters", json={"name": "tried", "rank": 2}).raise_for_status()
    with open_adapters(Settings(home=served.home)) as adapters:
        first = adapters.resolve("tried")
        second = adapters.compress("tried", "raw", tag="again").version
        adapters.canaries.begin(AdapterName("tried"), second, parent=first, share=0.5)
    shown = client.get("/v1/adapters/tried").json()
    assert shown["version"] == first
    assert (shown["canary"]["version"], shown["canary"]["share"]) == (second, 0.5)

    def answered_by(model: str, user: str = "") -> str:
        ask = {**ASK, "max_tokens": 1, "model": model, "user": user}
        fingerprint: str = client.post("/v1/chat/completions", json=ask).json()[
            "system_fingerprint"
        ]
        return fingerprint

    old, new = answered_by(f"tried@{first}"), answered_by(f"tried@{second}")
    users = [f"user {number}" for number in range(24)]
    versions = [answered_by("tried", user) for user in users]
    assert set(versions) == {old, new}  # all of one side: once in eight million
    assert [answered_by("tried", user) for user in users] == versions
    started = client.post("/v1/training/tried/start", json={"steps_per_day": 0, "canary": 0.25})
    assert (started.json()["canary"], started.json()["canary_out"]["version"]) == (0.25, second)
    assert client.post("/v1/training/tried/start", json={"canary": 1}).status_code == 400
    client.post("/v1/adapters/tried/promote", json={"tag": "canary"}).raise_for_status()
    until = time.monotonic() + 60
    while not (decisions := client.get("/v1/training/tried/status").json()["decisions"]):
        assert time.monotonic() < until
    assert (decisions[0]["action"], decisions[0]["version"]) == ("promoted", second)
    assert {answered_by("tried", user) for user in users[:4]} == {new}
    assert client.get("/v1/adapters/tried").json()["canary"] is None
    client.post("/v1/training/tried/stop").raise_for_status()
    client.delete("/v1/adapters/tried").raise_for_status()
