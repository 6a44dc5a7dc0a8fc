"""`/v1/responses`, asked by OpenAI's own client, which parses every event of a stream."""

import json
from typing import Any

import openai
import pytest

from hyprstream.server.schemas.responses import ResponseRequest
from tests.project.pages import DOCS
from tests.runtime.adapted_models import trained
from tests.server.test_chat import FUNCTION, GREEDY, MESSAGES, WEATHER

TOOL = {"type": "function", "strict": True, **FUNCTION}
CALLING: Any = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False,
                "max_output_tokens": 400}  # fmt: skip


@pytest.fixture
def api(served):
    with openai.OpenAI(base_url=f"{served.server.url}/v1", api_key=served.keys["all"],
                       max_retries=0, timeout=30) as api:  # fmt: skip
        yield api


def ask(api, **options) -> Any:
    given = {"model": "model", "input": "Hello", "max_output_tokens": 12, "temperature": 0}
    return api.responses.create(**{**given, **options})


def test_a_response_is_what_the_model_answers_alone(api, served):
    answer = ask(api, metadata={"a": "b"})
    alone = served.model.chat(MESSAGES, GREEDY)
    assert answer.output_text == alone.text
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.input_tokens == alone.usage.prompt_tokens
    assert answer.usage.output_tokens == 12
    assert answer.usage.total_tokens == alone.usage.prompt_tokens + 12
    assert answer.id.startswith("resp_")
    assert answer.metadata == {"a": "b"}
    assert type(answer).model_validate(answer.model_dump(), strict=False)


def test_instructions_and_items_are_the_chat_that_they_say(api, served):
    roles = ("system", "user", "assistant", "user")
    texts = ("Be short.", "Hello", "Well", "a\nb")
    chat = [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]
    answer = ask(
        api,
        instructions="Be short.",
        input=[
            {"role": "user", "content": "Hello"},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
             "content": [{"type": "output_text", "text": "Well", "annotations": []}]},
            {"role": "user", "content": [{"type": "input_text", "text": "a"},
                                         {"type": "input_text", "text": "b"}]},
        ],
    )  # fmt: skip
    assert answer.output_text == served.model.chat(chat, GREEDY).text
    assert answer.usage.input_tokens == len(served.model.chat_tokens(chat))


def test_a_stream_adds_up_to_the_response_and_its_events_are_numbered(api):
    whole = ask(api, temperature=1, extra_body={"seed": 3})
    with api.responses.stream(model="model", input="Hello", max_output_tokens=12, temperature=1,
                              extra_body={"seed": 3}) as stream:  # fmt: skip
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress",
                         "response.output_item.added", "response.content_part.added"]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done",
                          "response.output_item.done", "response.incomplete"]  # fmt: skip
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    final = events[-1].response
    assert text == final.output_text == whole.output_text == events[-4].text
    assert final.usage == whole.usage
    assert final.output[0].id == events[2].item.id == events[4].item_id


@pytest.mark.parametrize("place", ["model", "path"])
def test_an_adapter_is_chosen_by_the_model_and_by_the_path(served, place):
    path = "/v1/inference/team/clerk" if place == "path" else "/v1"
    name = "whatever" if place == "path" else "model:team/clerk"
    with openai.OpenAI(base_url=served.server.url + path, api_key=served.keys["all"]) as api:
        answer = ask(api, model=name)
    alone = served.model.adapted(trained(served.model, 2)).chat(MESSAGES, GREEDY)
    assert answer.output_text == alone.text
    assert answer.model == "team/clerk"
    stranger = openai.OpenAI(base_url=f"{served.server.url}/v1", api_key=served.keys["poet"])
    with stranger, pytest.raises(openai.NotFoundError):
        ask(stranger, model="team/clerk")


def test_what_a_function_returned_goes_back(api, served):
    answer = ask(api, **CALLING)
    [call] = answer.output
    assert (call.type, call.name, answer.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments)["x"] in (1, 2)
    events = list(ask(api, **CALLING, stream=True))
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.function_call_arguments.delta", "response.function_call_arguments.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert events[4].arguments == events[-1].response.output[0].arguments == call.arguments
    returned = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    said = [{"role": "user", "content": "Hello"}, *answer.output, returned]
    follow = ask(api, input=said, tools=[TOOL])
    same = [{"role": "user", "content": "Hello"},
            {"role": "assistant", "tool_calls": [{"id": call.call_id, "type": "function",
             "function": {"name": "weather", "arguments": call.arguments}}]},
            {"role": "tool", "content": "sunny", "tool_call_id": call.call_id}]  # fmt: skip
    with served.client() as client:
        counted = client.post("/tokenize", json={"messages": same, "tools": [WEATHER]}).json()
    assert follow.usage.input_tokens == counted["count"]


def test_a_json_schema_holds_the_text(api):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    answer = ask(api, text=wanted, max_output_tokens=300, temperature=1)
    assert json.loads(answer.output_text) in ({"a": 1}, {"a": 2})
    assert answer.status == "completed"


def test_log_probabilities_are_those_of_chats(api):
    answer = ask(api, top_logprobs=2, include=["message.output_text.logprobs"])
    found = answer.output[0].content[0].logprobs
    chat = api.chat.completions.create(model="model", messages=MESSAGES, max_tokens=12,
                                       temperature=0, logprobs=True, top_logprobs=2)  # fmt: skip
    # The second prompt is found in the cache and computed in other pieces: sums differ.
    wanted = [entry.logprob for entry in chat.choices[0].logprobs.content]
    assert [entry.logprob for entry in found] == pytest.approx(wanted, abs=1e-4)
    deltas = [e for e in ask(api, top_logprobs=2, stream=True)
              if e.type == "response.output_text.delta"]  # fmt: skip
    assert sum(len(event.logprobs) for event in deltas) == len(found) == 12


REFUSED: Any = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"store": True}, "store"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"reasoning": {"effort": "low"}}, "reasoning"),
    ({"max_tool_calls": 1}, "max_tool_calls"),
    ({"truncation": "auto"}, "truncation"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tool_choice": {"type": "file_search"}}, None),
    ({"tool_choice": "required"}, None),
    ({"include": ["file_search_call.results"]}, "include.0"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"input": []}, None),
    ({"input": [{"type": "item_reference", "id": "x"}]}, None),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, None),
    ({"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "no"}]}, None),
    ({"text": {"verbosity": "high"}}, None),
    ({"max_tokens": 3}, "max_tokens"),
]


@pytest.mark.parametrize(("change", "param"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_is_not_done_is_refused(client, change, param):
    answer = client.post("/v1/responses", json={"input": "Hello", "max_output_tokens": 1, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


def test_every_field_is_documented_and_ignored_ones_change_nothing(client):
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    for name in ResponseRequest.model_fields:
        assert f"`{name}`" in page, name
    body = {"input": "Hello", "max_output_tokens": 8, "temperature": 0}
    given = {"user": "x", "service_tier": "auto", "prompt_cache_key": "x", "store": False,
             "prompt_cache_retention": "24h", "safety_identifier": "x",
             "background": False}  # fmt: skip
    plain = client.post("/v1/responses", json=body).json()["output"][0]["content"]
    same = client.post("/v1/responses", json={**body, **given}).json()["output"][0]["content"]
    assert same == plain
