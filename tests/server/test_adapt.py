"""Requests that are adapted to their own prompts, over HTTP."""

import json

import pytest

TEXT = "the ship lies at pier seven, and pier seven is where the ship lies"
CHAT = "/v1/chat/completions"


def body(**more) -> dict[str, object]:
    messages = [{"role": "user", "content": TEXT}]
    return {"messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}


def test_an_answer_says_what_the_steps_on_its_prompt_came_to(client):
    plain = client.post(CHAT, json=body(model="poet")).json()
    adapt = {"steps": 2, "learning_rate": 0.01}
    answer = client.post(CHAT, json=body(model="poet", adapt=adapt)).json()
    told = answer["adapted"]
    assert set(told) == {"steps", "prompt_tokens", "loss_before", "loss_after", "kept"}
    assert (told["steps"], told["kept"]) == (2, None)
    assert told["loss_after"] < told["loss_before"]
    assert answer["system_fingerprint"] != plain["system_fingerprint"]
    # A stream says the same, in each of its chunks; and nobody else is answered otherwise.
    sent = body(model="poet", adapt=adapt, stream=True)
    with client.stream("POST", CHAT, json=sent) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == answer["choices"][0]["message"]["content"]
    assert all(chunk["adapted"] == told for chunk in chunks)
    again = client.post(CHAT, json=body(model="poet")).json()
    assert "adapted" not in again
    assert again["choices"] == plain["choices"]
    assert again["system_fingerprint"] == plain["system_fingerprint"]


def test_a_completion_is_adapted_too(client):
    sent = {"prompt": TEXT, "max_tokens": 2, "adapt": {"steps": 1, "learning_rate": 0.01}}
    told = client.post("/v1/completions", json=sent).json()["adapted"]
    assert told["loss_after"] < told["loss_before"]


def test_what_was_learnt_is_kept_by_an_admin_alone(served, client):
    adapt = {"steps": 1, "keep": "of/one"}
    with served.client("inference") as other:
        refused = other.post(CHAT, json=body(adapt=adapt))
        assert refused.status_code == 403, refused.text
        assert other.post(CHAT, json=body(adapt={"steps": 1})).status_code == 200
    kept = client.post(CHAT, json=body(adapt=adapt))
    assert kept.json()["adapted"]["kept"] == "of/one"
    said = kept.json()["choices"][0]["message"]["content"]
    again = client.post(CHAT, json=body(model="of/one")).json()
    assert again["choices"][0]["message"]["content"] == said
    assert client.post(CHAT, json=body(adapt=adapt)).status_code == 409
    client.delete("/v1/adapters/of/one").raise_for_status()


@pytest.mark.parametrize(
    "adapt",
    [{"steps": 0}, {"steps": 9}, {"learning_rate": 0.1}, {"rate": 1}, {"keep": "../up"}, True],
)
def test_what_is_out_of_bounds_is_refused(client, adapt):
    answer = client.post(CHAT, json=body(adapt=adapt))
    assert answer.status_code == 400, answer.text


def test_a_prompt_that_is_too_long_is_refused(client):
    sent = {"prompt": "x" * 1025, "adapt": {}}
    answer = client.post("/v1/completions", json=sent)
    assert answer.status_code == 400, answer.text
    assert "1024" in answer.text
