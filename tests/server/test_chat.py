"""`/v1/chat/completions` and `/v1/completions`, asked by OpenAI's own client."""

import json
from typing import Any

import openai
import pytest

from hyprstream.engine.request import SamplingParams
from tests.runtime.adapted_models import trained

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
FUNCTION = {
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": {
        "type": "object",
        "properties": {"x": {"enum": [1, 2]}},
        "required": ["x"],
        "additionalProperties": False,
    },
}
WEATHER = {"type": "function", "function": FUNCTION}


@pytest.fixture
def api(served):
    with openai.OpenAI(base_url=f"{served.server.url}/v1", api_key=served.keys["all"],
                       max_retries=0, timeout=30) as api:  # fmt: skip
        yield api


def ask(api, **options):
    given = {"model": "model", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, **options}
    return api.chat.completions.create(**given)


def test_a_chat_is_what_the_model_answers_alone(api, served):
    answer = ask(api)
    alone = served.model.chat(MESSAGES, GREEDY)
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == alone.finish_reason == "length"
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == alone.usage.prompt_tokens + 12
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "model"


def test_a_stream_adds_up_to_the_answer(api):
    whole = ask(api, n=2, temperature=1, seed=3)
    chunks = list(ask(api, n=2, temperature=1, seed=3, stream=True,
                      stream_options={"include_usage": True}))  # fmt: skip
    for number in (0, 1):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == number]
        assert own[0].delta.role == "assistant"
        text = "".join(choice.delta.content or "" for choice in own)
        assert text == whole.choices[number].message.content
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["length"]
    assert [chunk.choices for chunk in chunks].count([]) == 1
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


@pytest.mark.parametrize(
    ("name", "seed"),
    [("poet", 1), ("model:poet", 1), ("poet@", 1), ("team/clerk", 2), ("model:team/clerk", 2)],
)
def test_an_adapter_is_chosen_by_the_model(api, served, name, seed):
    version = api.models.retrieve(name.rstrip("@")).model_extra["version"]
    name = f"{name}{version[:12]}" if name.endswith("@") else name
    answer = ask(api, model=name)
    alone = served.model.adapted(trained(served.model, seed)).chat(MESSAGES, GREEDY)
    assert answer.choices[0].message.content == alone.text
    assert answer.system_fingerprint == f"fp_{version[:12]}"


def test_an_adapter_is_chosen_by_the_path(served):
    url = f"{served.server.url}/v1/inference/team/clerk"
    with openai.OpenAI(base_url=url, api_key=served.keys["all"], max_retries=0) as api:
        chat = ask(api, model="whatever")
        text = api.completions.create(model="gpt-4", prompt="a", max_tokens=8, temperature=0)
        vector = api.embeddings.create(model="x", input="a")
        models = api.models.list()
    adapted = served.model.adapted(trained(served.model, 2))
    assert chat.choices[0].message.content == adapted.chat(MESSAGES, GREEDY).text
    assert text.choices[0].text == adapted.generate("a", GREEDY, max_tokens=8).text
    assert len(vector.data[0].embedding) == served.model.info.width
    assert [model.id for model in models] == ["team/clerk"]


def test_models_are_the_base_and_its_adapters(api):
    models = {model.id: model for model in api.models.list()}
    assert next(iter(models)) == "model"
    assert {"poet", "team/clerk"} <= models.keys()  # and what other tests have made
    poet = models["poet"].model_extra
    assert poet["parent"] == "model"
    assert poet["root"] == f"poet@{poet['version'][:12]}"
    assert models["model"].model_extra["parent"] is None


def test_what_is_not_there_is_a_404(api):
    for name in ("nobody", "model:nobody", "poet@0000", "../../etc/passwd", "", "a b"):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(api, model=name)
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"


def test_sampling_fields_do_what_they_say(api, served):
    chat = served.model.chat
    cases = [
        {"stop": chat(MESSAGES, GREEDY).text[3:5]},
        {"logit_bias": {"65": 100}},
        {"presence_penalty": 2.0},
        {"frequency_penalty": -2.0},
        {"temperature": 1.3, "seed": 5, "top_p": 0.8},
    ]
    for options in cases:
        answer = ask(api, **options).choices[0]
        own = dict(options)
        own["stop"] = (own.get("stop"),) if "stop" in own else ()
        own["logit_bias"] = {int(k): v for k, v in options.get("logit_bias", {}).items()}
        alone = chat(MESSAGES, GREEDY, **own)
        assert (answer.message.content, answer.finish_reason) == (alone.text, alone.finish_reason)
    extra = {"top_k": 2, "min_p": 0.1, "repetition_penalty": 1.5}
    answer = ask(api, temperature=1, seed=5, extra_body=extra)
    alone = chat(MESSAGES, GREEDY, temperature=1.0, seed=5, **extra)
    assert answer.choices[0].message.content == alone.text


def test_log_probabilities_are_those_of_the_model(api, served):
    answer = ask(api, logprobs=True, top_logprobs=3).choices[0]
    alone = served.model.chat(MESSAGES, GREEDY, logprobs=3)
    assert len(answer.logprobs.content) == 12
    for found, token in zip(answer.logprobs.content, alone.tokens, strict=True):
        assert found.logprob == pytest.approx(token.logprobs.chosen, abs=1e-4)
        assert bytes(found.bytes) == served.model.tokenizer.token_bytes(token.token_id)
        tops = [top.logprob for top in found.top_logprobs]
        assert tops == pytest.approx([value for _, value in token.logprobs.top], abs=1e-4)
    chunks = [c.choices[0] for c in ask(api, logprobs=True, top_logprobs=3, stream=True)]
    streamed = [entry for c in chunks if c.logprobs for entry in c.logprobs.content]
    # The prompt comes from the cache now, so its sums may round otherwise.
    assert [found.bytes for found in streamed] == [found.bytes for found in answer.logprobs.content]
    for found, before in zip(streamed, answer.logprobs.content, strict=True):
        assert found.logprob == pytest.approx(before.logprob, abs=1e-5)
        tops = [top.logprob for top in found.top_logprobs]
        assert tops == pytest.approx([top.logprob for top in before.top_logprobs], abs=1e-5)


def test_completions_continue_texts_and_tokens(api, served):
    tokens = served.model.tokenizer.encode("ab")
    answer = api.completions.create(
        model="model", prompt=[tokens, tokens[:1]], n=2, temperature=0, logprobs=1, max_tokens=4
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = [served.model.generate(prompt, GREEDY, max_tokens=4).text for prompt in ("ab", "a")]
    texts = [choice.text for choice in answer.choices]
    assert texts == [alone[0]] * 2 + [alone[1]] * 2
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 4
    stream = api.completions.create(
        model="model", prompt="ab", temperature=0, max_tokens=4, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == alone[0]
    usual = api.completions.create(model="model", prompt="ab", extra_body={"ignore_eos": True})
    assert usual.usage.completion_tokens == 16


def test_a_json_schema_holds_the_answer(api):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = ask(api, response_format=wanted, max_tokens=300, temperature=1)
    assert json.loads(answer.choices[0].message.content) in ({"a": 1}, {"a": 2})
    assert answer.choices[0].finish_reason == "stop"
    nonsense = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}
    with pytest.raises(openai.BadRequestError):
        ask(api, response_format=nonsense)


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "weather"}}],
    ids=["any", "one"],
)
def test_a_tool_is_called_when_it_must_be(api, choice):
    answer = ask(api, tools=[WEATHER], tool_choice=choice, max_tokens=400,
                 parallel_tool_calls=False)  # fmt: skip
    message, finish = answer.choices[0].message, answer.choices[0].finish_reason
    assert finish == "tool_calls"
    assert message.content is None
    [call] = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["x"] in (1, 2)
    chunks = list(ask(api, tools=[WEATHER], tool_choice=choice, max_tokens=400,
                      parallel_tool_calls=False, stream=True))  # fmt: skip
    [streamed] = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
    assert streamed[0].function.arguments == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    history = [*MESSAGES, message.model_dump(),
               {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]  # fmt: skip
    assert ask(api, messages=history, tools=[WEATHER]).choices[0].message.content


def test_several_tools_are_called_at_a_time(api):
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "temperature": 1,
                               "max_tokens": 400}  # fmt: skip
    found = ((seed, ask(api, seed=seed, **options).choices[0].message.tool_calls)
             for seed in range(60))  # fmt: skip
    # A third of what this model of random weights says has more than one.
    seed, calls = next((seed, calls) for seed, calls in found if len(calls) > 1)
    assert len({call.id for call in calls}) == len(calls)
    assert all(json.loads(call.function.arguments)["x"] in (1, 2) for call in calls)
    streamed: dict[int, str] = {}
    for chunk in ask(api, seed=seed, stream=True, **options):
        for piece in chunk.choices[0].delta.tool_calls or []:
            known = streamed.get(piece.index, "")
            streamed[piece.index] = known + (piece.function.arguments or "")
    assert [streamed[i] for i in range(len(calls))] == [c.function.arguments for c in calls]
    alone = ask(api, seed=seed, **options, parallel_tool_calls=False).choices[0].message
    assert len(alone.tool_calls) == 1


def test_tools_that_are_not_to_be_called_are_not_in_the_prompt(api):
    with_tools = ask(api, tools=[WEATHER], tool_choice="none")
    assert with_tools.usage == ask(api).usage
    assert ask(api, tools=[WEATHER]).usage.prompt_tokens > with_tools.usage.prompt_tokens


def test_embeddings_come_as_numbers_and_packed(api, served):
    texts = ["one", "two words"]
    packed = api.embeddings.create(model="model", input=texts)  # the client asks for base64
    plain = api.embeddings.create(model="poet", input=texts, encoding_format="float")
    assert len(packed.data) == len(plain.data) == 2
    again = api.embeddings.create(model="model", input=texts, encoding_format="float")
    for one, other in zip(packed.data, again.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert plain.data[0].embedding != again.data[0].embedding
    assert packed.usage.total_tokens == sum(len(served.model.tokenizer.encode(t)) for t in texts)


def test_tokens_and_back(client, served):
    text = "Grüße <|x|>"
    found = client.post("/tokenize", json={"prompt": text}).json()
    assert found["tokens"] == served.model.tokenizer.encode(text)
    assert found["count"] == len(found["tokens"])
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": text}
    chat = client.post("/tokenize", json={"messages": MESSAGES}).json()
    assert chat["tokens"] == served.model.chat_tokens(MESSAGES)
    assert client.post("/tokenize", json={}).status_code == 400


def test_clients_that_call_from_many_tasks_are_all_served(served):
    import asyncio

    async def main():
        async with openai.AsyncOpenAI(
            base_url=f"{served.server.url}/v1", api_key=served.keys["all"], max_retries=0
        ) as api:

            async def one(number):
                stream: Any = await api.chat.completions.create(
                    model=("model", "poet", "team/clerk")[number % 3], messages=MESSAGES,
                    max_tokens=12, temperature=0, stream=True,
                )  # fmt: skip
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*map(one, range(24)))

    texts = asyncio.run(main())
    for kind in range(3):
        assert len(set(texts[kind::3])) == 1
    assert len(set(texts)) == 3
