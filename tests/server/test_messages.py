"""`/v1/messages`, asked by Anthropic's own client."""

from typing import Any

import anthropic
import httpx
import pytest

from hyprstream.server.schemas.messages import MessageRequest
from tests.project.pages import DOCS
from tests.runtime.adapted_models import trained
from tests.server.test_chat import FUNCTION, GREEDY, MESSAGES

TOOL: Any = {"name": "weather", "description": "Tell the weather.",
             "input_schema": FUNCTION["parameters"]}  # fmt: skip
GREEDILY = {"temperature": 0}  # which the client has no argument for
SEEDED = {"seed": 3}
ANY: Any = {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "max_tokens": 400}  # fmt: skip


@pytest.fixture
def api(served):
    with anthropic.Anthropic(base_url=served.server.url, api_key=served.keys["all"],
                             max_retries=0, timeout=30) as api:  # fmt: skip
        yield api


def ask(api, **options) -> Any:
    given = {"model": "model", "messages": MESSAGES, "max_tokens": 12, "extra_body": GREEDILY}
    return api.messages.create(**{**given, **options})


def test_a_message_is_what_the_model_answers_alone(api, served):
    answer = ask(api)
    alone = served.model.chat(MESSAGES, GREEDY)
    assert [block.text for block in answer.content] == [alone.text]
    assert (answer.role, answer.stop_reason, answer.stop_sequence) == (
        "assistant",
        "max_tokens",
        None,
    )
    assert answer.usage.input_tokens == alone.usage.prompt_tokens
    assert answer.usage.output_tokens == 12
    assert answer.id.startswith("msg_")


def test_system_and_blocks_are_the_chat_that_they_say(api, served):
    roles = ("system", "user", "assistant", "user")
    texts = ("Be short.", "Hello\nthere", "Well", "so")
    chat = [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]
    said: Any = {
        "system": [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "user", "content": [{"type": "text", "text": "there"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Well"}]},
            {"role": "user", "content": "so"},
        ],
    }
    answer = ask(api, **said)
    assert answer.content[0].text == served.model.chat(chat, GREEDY).text
    counted = api.messages.count_tokens(model="model", **said)
    assert counted.input_tokens == answer.usage.input_tokens == len(served.model.chat_tokens(chat))


def test_a_stop_sequence_is_told(api, served):
    stop = served.model.chat(MESSAGES, GREEDY).text[3:5]
    answer = ask(api, stop_sequences=["~never~", stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert stop not in answer.content[0].text


def test_a_stream_adds_up_to_the_message(api):
    whole = ask(api, extra_body=SEEDED)
    given = {"model": "model", "messages": MESSAGES, "max_tokens": 12, "extra_body": SEEDED}
    with api.messages.stream(**given) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert final.content[0].text == whole.content[0].text
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens, whole.usage.output_tokens)  # fmt: skip
    assert final.stop_reason == "max_tokens"


def test_frames_are_those_of_the_protocol(client):
    body = {"messages": MESSAGES, "max_tokens": 2, "stream": True}
    text = client.post("/v1/messages", json=body).text
    names = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert "[DONE]" not in text


def test_a_tool_is_called_and_what_it_returned_goes_back(api):
    answer = ask(api, **ANY)
    [call] = answer.content
    assert (call.type, call.name, answer.stop_reason) == ("tool_use", "weather", "tool_use")
    assert call.input["x"] in (1, 2)
    with api.messages.stream(
        model="model", messages=MESSAGES, extra_body=GREEDILY, **ANY
    ) as stream:
        final = stream.get_final_message()
    assert final.content[0].input == call.input
    assert final.stop_reason == "tool_use"
    named = {**ANY, "tool_choice": {"type": "tool", "name": "weather"}}
    assert ask(api, **named).content[0].input == call.input
    returned = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": "sunny",
        "is_error": False,
    }
    said = [*MESSAGES, {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [returned, {"type": "text", "text": "so?"}]}]  # fmt: skip
    follow = ask(api, messages=said, tools=[TOOL])
    counted = api.messages.count_tokens(model="model", messages=said, tools=[TOOL])
    assert follow.usage.input_tokens == counted.input_tokens
    assert counted.input_tokens > api.messages.count_tokens(
        model="model", messages=MESSAGES, tools=[TOOL]).input_tokens  # fmt: skip


@pytest.mark.parametrize("place", ["model", "path", "whole path"])
def test_an_adapter_is_chosen_by_the_model_and_by_the_path(served, place):
    alone = served.model.adapted(trained(served.model, 2)).chat(MESSAGES, GREEDY)
    if place == "whole path":
        with served.client() as client:
            body = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}
            answer = client.post("/v1/inference/team/clerk/messages", json=body)
        assert answer.json()["content"][0]["text"] == alone.text
        return
    path = "/v1/inference/team/clerk" if place == "path" else ""
    url = served.server.url + path
    with anthropic.Anthropic(base_url=url, auth_token=served.keys["all"], api_key=None) as api:
        found = ask(api, model="x" if path else "team/clerk")
    assert found.content[0].text == alone.text


def test_errors_have_the_form_of_the_protocol(served, api):
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(api, model="nobody")
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    url = served.server.url
    stranger = anthropic.Anthropic(base_url=url, api_key="no key", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError) as refused:
        ask(stranger)
    assert set(refused.value.body["error"]) == {"type", "message"}  # type: ignore[index]
    assert refused.value.body["type"] == "error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError):
        ask(api, max_tokens=0)
    huge = httpx.post(f"{served.server.url}/v1/messages", headers={"x-api-key": served.keys["all"]},
                      content=b" " * (5 << 20))  # fmt: skip
    assert (huge.status_code, huge.json()["error"]["type"]) == (413, "request_too_large")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
REFUSED: Any = [
    ({"max_tokens": None}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "text alone"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "text alone"),
    ({"messages": [{"role": "user", "content": [{"type": "thinking"}]}]}, "text alone"),
    ({"system": [IMAGE]}, "text alone"),
    ({"messages": [*MESSAGES, {"role": "assistant", "content": "I"}]}, "continued"),
    ({"messages": [{"role": "user", "content": [
        {"type": "tool_use", "id": "x", "name": "f", "input": {}}]}]}, "tool_use"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
    ({"output_config": {"effort": "high"}}, "reasons"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools of the server"),
    ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "names no tool"),
    ({"tool_choice": {"type": "any"}}, "no tools"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"container": "x"}, "container"),
    ({"context_management": {}}, "context_management"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": -1}, "temperature"),
    ({"n": 2}, "not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_is_not_done_is_refused(client, change, said):
    body = {"messages": MESSAGES, "max_tokens": 1, **change}
    answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]


def test_every_field_is_documented_and_ignored_ones_change_nothing(client):
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    for name in MessageRequest.model_fields:
        assert f"`{name}`" in page, name
    body = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    given = {"metadata": {"user_id": "x"}, "service_tier": "auto", "thinking": {"type": "disabled"},
             "cache_control": {"type": "ephemeral"}}  # fmt: skip
    plain = client.post("/v1/messages", json=body).json()["content"]
    assert client.post("/v1/messages", json={**body, **given}).json()["content"] == plain


def test_what_an_adapter_learns_of_is_known_by_the_id_in_every_protocol(client):
    message = client.post("/v1/messages", json={
        "model": "poet", "messages": MESSAGES, "max_tokens": 2}).json()["id"]  # fmt: skip
    response = client.post("/v1/responses", json={
        "model": "poet", "input": "Hello", "max_output_tokens": 2}).json()["id"]  # fmt: skip
    for answer in (message, response):
        told = client.post("/v1/feedback", json={"id": answer, "thumbs": "down"})
        assert told.status_code == 200, told.text
