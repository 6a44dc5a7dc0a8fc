"""Samples over HTTP: sent, counted, measured on, learnt, kept for a while, and taken back."""

import json
import math
import shutil
import time
from typing import Any

import pytest

from hyprstream.cli.main import run
from hyprstream.runtime.adapted import load_adapter
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.keys import SCOPES, KeyFile
from hyprstream.runtime.settings import Settings
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.server.process import ServerProcess

LINES = {"Content-Type": "application/x-ndjson"}
PATH = "/v1/adapters/poet/samples"


def record(number: int, **more) -> dict[str, object]:
    words = f"Question {number} of this test?"
    return {"prompt": words, "completion": f"It is answer {number}.", **more}


def lines(*records: object) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in records)


@pytest.fixture(scope="module")
def learning_home(home, tmp_path_factory):
    """A home of this module's own: others count their samples."""
    folder = tmp_path_factory.mktemp("samples") / "home"
    shutil.copytree(home[0], folder, ignore=shutil.ignore_patterns("keys", "learning"))
    return folder


@pytest.fixture(scope="module")
def server(learning_home):
    file = KeyFile(Settings(home=learning_home).keys_folder)
    server_keys = {name: file.create(name, SCOPES) for name in ("one", "two")}
    server_keys["poet"] = file.create("poet", SCOPES, ["poet"])
    options = {"HYPRSTREAM_TRAIN__RETENTION__CHECK_S": "0.2"}
    with ServerProcess(learning_home, **options) as process:
        yield process, server_keys


@pytest.fixture
def client(server):
    process, keys = server
    with process.client(keys["one"][0]) as client:
        yield client
        client.post("/v1/training/poet/stop").raise_for_status()
        client.delete("/v1/samples", params={"key": keys["one"][1].id}).raise_for_status()


def test_one_sample_is_kept_once(client):
    answer = client.post(PATH, json=record(1))
    assert answer.status_code == 200, answer.text
    [kept] = answer.json()["results"]
    assert kept["line"] == 1
    assert kept["recorded"] in (["waiting"], ["held_out"])
    again = client.post(PATH, json=record(1)).json()
    assert again["results"] == [{"line": 1, "recorded": ["duplicate"]}]
    assert again["counts"] == {"duplicate": 1, "error": 0}
    listed = client.get(PATH, params={"text": "true"}).json()
    assert sum(listed["counts"].values()) == 1
    [sample] = listed["data"]
    assert sample["state"] == kept["recorded"][0]
    assert sample["text"].startswith("Question 1 of this test?")
    assert sample["text"].endswith("It is answer 1.")


def test_lines_are_kept_and_the_errors_of_others_are_told_by_their_numbers(client):
    sent = [
        json.dumps(record(2)).encode(),
        b"",
        b"{not json",
        b'{"prompt": "x", "completion": NaN}',
        b'{"unknown": "form"}',
        b"[" * 100_000,
        b'{"prompt": "\\ud800", "completion": "y"}',
        b"\xff\xfe",
        b'{"chosen": "a", "rejected": "b", "prompt": "c"}',
        json.dumps(record(3, user=7)).encode(),
        json.dumps({"messages": [{"role": "user", "content": "Hi"},
                                 {"role": "assistant", "content": "Ho"}]}).encode(),
    ]  # fmt: skip
    answer = client.post(PATH, content=b"\n".join(sent), headers=LINES)
    assert answer.status_code == 200, answer.text
    results = {result["line"]: result for result in answer.json()["results"]}
    assert results.keys() == {1, *range(3, 12)}
    assert {n for n, result in results.items() if "recorded" in result} == {1, 11}
    for number in range(3, 11):
        error = results[number]["error"]
        assert error["type"] == "invalid_request_error", error
        assert error["message"]
    assert answer.json()["counts"]["error"] == 8
    assert sum(client.get(PATH).json()["counts"].values()) == 2


def test_what_is_no_list_of_samples_is_refused(client):
    assert client.post(PATH, content=b"x").status_code == 415
    assert client.post(PATH, content=b"\n" * 10_001, headers=LINES).status_code == 413
    assert client.post(PATH, content=b" " * (5 << 20), headers=LINES).status_code == 413
    assert client.post("/v1/adapters/nobody/samples", json=record(1)).status_code == 404
    assert client.get(PATH, params={"limit": 5000}).status_code == 400
    answer = client.post(PATH, json=record(1), params={"user": "x" * 1000})
    assert answer.status_code == 400
    long = client.post(PATH, json={"prompt": "x", "completion": "y" * 4000}).json()
    assert long["results"][0]["recorded"] == ["too_long"]


def test_pages_of_samples_are_complete(client):
    client.post(PATH, content=lines(*map(record, range(10, 17))), headers=LINES)
    ids: list[int] = []
    after: int | None = 0
    while after is not None:
        page = client.get(PATH, params={"limit": 3, "after": after}).json()
        ids += [sample["id"] for sample in page["data"]]
        after = page["next_after"]
    assert len(ids) == 7
    assert ids == sorted(ids)


def files_with(folder, *needles: bytes) -> list[str]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [path.name for needle in needles if needle in content]
    return found


@pytest.fixture(scope="module")
def needles_of(home):
    """A text as it is, and as its tokens stand in the journal."""
    tokenizer = home[1].tokenizer
    return lambda text: (
        text.encode(), json.dumps(tokenizer.encode(text, add_special=False))[1:-1].encode()
    )  # fmt: skip


def test_nothing_is_left_of_a_user_who_is_deleted(client, learning_home, server, needles_of):
    process, keys = server
    secret = needles_of("Ada's secret is a green elephant")
    shared = needles_of("Bob keeps a blue giraffe")
    start = {"learn": "all", "steps_per_day": 0}
    client.post("/v1/training/poet/start", json=start).raise_for_status()
    message = {"role": "user", "content": "Ada's secret is a green elephant"}
    ask = {"model": "poet", "temperature": 0, "max_tokens": 3, "messages": [message]}
    said = client.post("/v1/chat/completions", json={**ask, "user": "ada"}).json()
    told = {"id": said["id"], "correction": "Ada's secret is a green elephant, indeed."}
    assert client.post("/v1/feedback", json=told).json()["recorded"] in ("waiting", "held_out")
    sent = [record(n, user="ada") | {"prompt": f"{n}: Ada's secret is a green elephant"}
            for n in range(20)]  # fmt: skip
    others = [record(n, user="bob") | {"prompt": f"{n}: Bob keeps a blue giraffe"}
              for n in range(20)]  # fmt: skip
    mixed = [one for pair in zip(sent, others, strict=True) for one in pair]
    client.post(PATH, content=lines(*mixed), headers=LINES).raise_for_status()
    assert "journal.db-wal" in files_with(learning_home, *secret)
    with process.client(keys["poet"][0]) as other:
        # A key of other people's samples, and another adapter's, take nothing away.
        assert other.delete("/v1/samples", params={"key": keys["two"][1].id}).json()["deleted"] == 0
    gone = client.delete("/v1/samples", params={"user": "ada"}).json()
    assert gone["deleted"] == 21
    assert gone["adapters"] == {"poet": 21}
    assert gone["versions"] == {}
    assert files_with(learning_home, *secret) == []
    assert files_with(learning_home, *shared)
    states = {sample["user"] for sample in client.get(PATH).json()["data"]}
    assert states == {"bob"}
    # What was remembered of the exchange for feedback is gone, too.
    assert client.post("/v1/feedback", json=told).json()["error"]["code"] == "answer_not_found"
    assert client.delete("/v1/samples").status_code == 400
    by_key = client.delete("/v1/samples", params={"key": keys["one"][1].id, "user": "bob"}).json()
    assert by_key["deleted"] == 20
    assert files_with(learning_home, *shared) == []
    # They may be sent again, and are no duplicates then.
    again = client.post(PATH, content=lines(*sent[:2]), headers=LINES).json()
    assert set(again["counts"]) <= {"waiting", "held_out", "error"}


def test_who_objects_or_is_of_an_adapter_that_does_not_learn_is_not_recorded(
    client, learning_home, needles_of
):
    text = "Nobody shall keep this purple zebra"
    ask = {"model": "poet", "temperature": 0, "max_tokens": 3,
           "messages": [{"role": "user", "content": text}]}  # fmt: skip
    client.post("/v1/chat/completions", json=ask).raise_for_status()
    start = {"learn": "all", "steps_per_day": 0}
    client.post("/v1/training/poet/start", json=start).raise_for_status()
    said = client.post("/v1/chat/completions", json={**ask, "learn": False}).json()
    told = {"id": said["id"], "correction": text}
    assert client.post("/v1/feedback", json=told).json()["recorded"] == "withdrawn"
    stopped = client.post("/v1/training/poet/stop").json()
    assert stopped["learn"] == "off"
    assert stopped["budget"]["steps"] == 0  # the rest of the policy stays
    assert files_with(learning_home, *needles_of(text)) == []


def test_samples_go_when_their_time_or_their_number_is_up(client, learning_home, needles_of):
    client.post(PATH, content=lines(*map(record, range(30, 40))), headers=LINES)
    policy = {"learn": "feedback", "steps_per_day": 0, "keep_samples": 4}
    client.post("/v1/training/poet/start", json=policy).raise_for_status()
    assert len(client.get(PATH).json()["data"]) == 4
    policy = {"learn": "feedback", "steps_per_day": 0, "keep_days": 1e-6}
    status = client.post("/v1/training/poet/start", json=policy).json()
    assert status["keep_days"] == 1e-6
    client.post(PATH, json=record(41)).raise_for_status()
    until = time.monotonic() + 20
    while client.get(PATH).json()["data"]:  # looked at every 0.2 seconds in this server
        assert time.monotonic() < until
    assert files_with(learning_home, *needles_of("Question 41 of this test?")) == []
    client.post("/v1/training/poet/start", json={"steps_per_day": 0}).raise_for_status()


def test_an_adapter_is_measured_as_the_trainer_measures_it(client, home, learning_home):
    _, model = home
    records = [record(n) for n in range(50, 56)]
    answer = client.post("/v1/adapters/poet/evaluate", json={"samples": records})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    encode = model.tokenizer.encode
    with open_adapters(Settings(home=learning_home)) as adapters:
        loaded = load_adapter(adapters, "poet", model)
    trainer = Trainer(model.decoder)
    made = [Sample.answer(encode(one["prompt"]), encode(one["completion"], add_special=False))
            for one in records]  # fmt: skip
    for weights, whose in ((loaded.weights, "adapter"), (None, "base")):
        expected = Evaluation.of(trainer.score(weights, made))
        assert found[whose]["num_tokens"] == expected.num_tokens
        assert math.isclose(found[whose]["loss"], expected.loss, rel_tol=1e-4)
        assert math.isclose(found[whose]["perplexity"], expected.perplexity, rel_tol=1e-3)
        assert found[whose]["exact_match"] == expected.exact_match
        assert math.isclose(found[whose]["token_accuracy"], expected.token_accuracy)
    assert found["version"] == loaded.version


def test_what_is_held_out_is_measured_and_nothing_else(client):
    nothing = client.post("/v1/adapters/poet/evaluate", json={})
    assert nothing.status_code == 400
    sent = client.post(PATH, content=lines(*map(record, range(60, 90))), headers=LINES).json()
    held_out = sent["counts"]["held_out"]
    found = client.post("/v1/adapters/poet/evaluate", json={}).json()
    assert found["adapter"]["num_samples"] == held_out
    found = client.post("/v1/adapters/poet/evaluate", json={"max_samples": 2}).json()
    assert found["adapter"]["num_samples"] == min(2, held_out)
    bodies: tuple[dict[str, Any], ...] = (
        {"samples": []}, {"samples": [{"x": 1}]}, {"max_samples": 0}, {"samples": [1]},
    )  # fmt: skip
    for body in bodies:
        answer = client.post("/v1/adapters/poet/evaluate", json=body)
        assert answer.status_code == 400, answer.text
    assert client.post("/v1/adapters/nobody/evaluate", json={}).status_code == 404


def test_coverage_tells_what_of_the_model_is_changed(client):
    made = {"name": "part", "rank": 2, "target_modules": ["q_proj"]}
    client.post("/v1/adapters", json=made).raise_for_status()
    try:
        fresh = client.get("/v1/adapters/part/coverage").json()
        assert fresh["changed"] == []
        assert fresh["missing"] == []
        assert all(path.endswith("q_proj") for path in fresh["silent"])
        whole = client.get("/v1/adapters/poet/coverage").json()
        stats = client.get("/v1/adapters/poet/stats").json()["modules"]
        assert set(whole["changed"]) == {module["path"] for module in stats if module["norm"]}
        every = [whole[kind] for kind in ("changed", "silent", "missing", "untouched")]
        assert sum(map(len, every)) == whole["num_layers"]
        sent = client.get("/v1/adapters/poet/export").content
        taken = client.post("/v1/adapters/again/import", content=sent)
        assert taken.status_code == 201
        again = client.get("/v1/adapters/again/coverage").json()
        assert again["changed"] == whole["changed"]
    finally:
        for name in ("part", "again"):
            client.delete(f"/v1/adapters/{name}")
    assert client.get("/v1/adapters/nobody/coverage").status_code == 404


def test_train_sends_samples_and_begins_to_learn_whatever_the_policy(client, server):
    process, _ = server
    records = [record(n) for n in range(100, 130)]
    answer = client.post("/v1/lora/poet/train", json={"samples": records})
    assert answer.status_code == 200, answer.text
    assert answer.json()["learns"]
    assert client.get("/v1/training/poet/status").json()["learn"] == "off"
    stopped = client.post("/v1/training/poet/stop").json()
    assert stopped["learn"] == "off"
    assert not client.post(PATH, json=record(1000)).json()["learns"]
    assert client.post("/v1/lora/nobody/train", json={}).status_code == 404
    assert "Traceback" not in process.log


@pytest.fixture
def command(learning_home, monkeypatch, capsys):
    """Run a command in the home of the server, with its key."""
    monkeypatch.setenv("HYPRSTREAM_HOME", str(learning_home))
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(learning_home / "none.toml"))

    def run_command(*arguments: str, key: str = "") -> tuple[int, str, str]:
        monkeypatch.setenv("HYPRSTREAM_API_KEY", key)
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_commands_reach_the_server_that_learns_in_their_home(client, server, command):
    process, keys = server
    key = keys["one"][0]
    start = {"learn": "all", "steps_per_day": 0}
    client.post("/v1/training/poet/start", json=start).raise_for_status()
    code, _, err = command("lora", "train", "stop", "poet")
    assert code != 0
    assert "HYPRSTREAM_API_KEY" in err
    assert client.get("/v1/training/poet/status").json()["learns"]
    assert command("lora", "train", "stop", "poet", key="not a key at all")[0] != 0
    code, _, err = command("lora", "train", "stop", "poet", key=key)
    assert (code, "learns no more of poet" in err) == (0, True), err
    assert not client.get("/v1/training/poet/status").json()["learns"]
    code, _, err = command("lora", "train", "stop", "poet", "--url", process.url, key=key)
    assert (code, "learns nothing of it" in err) == (0, True), err
    status = ("lora", "train", "status", "poet", "--url", process.url, "--format", "json")
    code, out, _ = command(*status, key=key)
    assert (code, json.loads(out)["learn"]) == (0, "off")
    client.post(PATH, content=lines(*map(record, range(200, 205))), headers=LINES)
    forget = ("lora", "train", "forget", "--key", keys["one"][1].id, "--format", "json")
    assert command(*forget, key=key)[0] != 0  # it asks, and nobody is there to answer
    code, out, _ = command(*forget, "--yes", key=key)
    assert (code, json.loads(out)["deleted"]) == (0, 5)
    assert client.get(PATH).json()["data"] == []


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "nonsense", "http://example.com:80", "http://127.0.0.1:1"]
)
@pytest.mark.usefixtures("server")
def test_a_key_goes_nowhere_but_to_a_server_that_is_reached_safely(command, url):
    stop = ("lora", "train", "stop", "poet", "--url", url)
    code, _, err = command(*stop, key="a key that is long enough")
    assert code != 0
    assert "long enough" not in err
