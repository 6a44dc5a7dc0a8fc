"""Many callers on one runtime get what the synchronous model gives each of them alone."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import Grammar, SamplingParams
from hyprstream.errors import (
    AdapterNotFoundError,
    ContextTooLongError,
    EngineStoppedError,
    IncompatibleAdapterError,
    InvalidRequestError,
    UnsupportedError,
)
from hyprstream.refs import RequestId
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.text_service import Answered, Caller
from tests.runtime.adapted_models import commit, make_folder, trained

MESSAGES = [{"role": "user", "content": "Hello"}]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
ENGINE = EngineConfig(kv_memory_bytes=1 << 22, max_sequences=16)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def settings(home) -> Settings:
    return Settings(home=home, engine=ENGINE)


@pytest.fixture(scope="module")
def model(home, settings) -> Model:
    model = Model.load(make_folder(home / "model"), settings=settings)
    with open_adapters(settings) as adapters:
        commit(adapters, "poet", model, trained(model, 1))
        commit(adapters, "team/clerk", model, trained(model, 2))
        other = Model.load(make_folder(home / "other", seed=5), settings=settings)
        commit(adapters, "stranger", other, trained(other, 3))
    return model


def serve(model, settings, use):
    """Run `use` on a runtime of the model."""

    async def main():
        async with Runtime(model, settings) as runtime:
            return await use(runtime)

    return asyncio.run(main())


async def idle(runtime) -> None:
    """Wait until the engine holds nothing."""
    async with asyncio.timeout(10):
        while runtime.num_requests:
            await asyncio.sleep(0.005)


async def completions(answers):
    return [completion.text for completion in await answers.finish()]


def test_streams_of_many_callers_are_the_texts_of_each_alone(model, settings):
    prompts = ["one", "two words", "ein paar mehr", "x" * 30]

    async def use(runtime):
        async def one(prompt):
            answers = await runtime.text.complete([prompt], GREEDY, Caller())
            return "".join([delta.text async for delta in answers])

        return await asyncio.gather(*map(one, prompts))

    assert serve(model, settings, use) == [model.generate(p, GREEDY).text for p in prompts]


def test_several_prompts_and_answers_are_numbered(model, settings):
    params = SamplingParams(temperature=1, max_tokens=8, seed=40)

    async def use(runtime):
        answers = await runtime.text.complete(["a", "b"], params, Caller(), num_answers=2)
        texts = dict.fromkeys(range(4), "")
        ends = []
        async for delta in answers:
            texts[delta.answer] += delta.text
            ends += [delta.answer] if delta.finish else []
        return texts, sorted(ends), answers.usage

    texts, ends, usage = serve(model, settings, use)
    alone = [model.generate(p, params, seed=seed) for p in "ab" for seed in (40, 41)]
    assert list(texts.values()) == [completion.text for completion in alone]
    assert ends == [0, 1, 2, 3]
    assert usage.prompt_tokens == 2
    assert usage.completion_tokens == sum(c.usage.completion_tokens for c in alone)


def test_adapters_answer_beside_one_another(model, settings):
    async def use(runtime):
        async def one(adapter):
            answers = await runtime.text.chat(MESSAGES, GREEDY, Caller(adapter=adapter))
            return (await completions(answers))[0], answers.version

        return await asyncio.gather(*map(one, [None, "poet", "team/clerk"]))

    (base, none), (poet, version), (clerk, _) = serve(model, settings, use)
    assert none is None
    with open_adapters(settings) as adapters:
        assert version == adapters.resolve("poet")
    assert base == model.chat(MESSAGES, GREEDY).text
    assert poet == model.adapted(trained(model, 1)).chat(MESSAGES, GREEDY).text
    assert clerk == model.adapted(trained(model, 2)).chat(MESSAGES, GREEDY).text
    assert len({base, poet, clerk}) == 3


def test_adapters_beyond_the_memory_for_them_take_turns(model, home):
    size = trained(model, 1).size_bytes
    config = EngineConfig(kv_memory_bytes=1 << 22, adapter_memory_bytes=size * 3 // 2)
    settings = Settings(home=home, engine=config)

    async def use(runtime):
        texts = []
        for adapter in ["poet", "team/clerk"] * 2:
            texts += await completions(
                await runtime.text.complete(["a"], GREEDY, Caller(adapter=adapter))
            )
        return texts

    texts = serve(model, settings, use)
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


def test_a_request_keeps_its_version_when_the_name_moves(model, settings):
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)

    async def use(runtime):
        def ask():
            return runtime.text.complete(["a"], params, Caller(adapter="mover"))

        first = commit(runtime.adapters, "mover", model, trained(model, 1)).version
        answers = await ask()
        text = (await anext(answers)).text
        second = commit(runtime.adapters, "newer", model, trained(model, 2)).version
        runtime.adapters.move("mover", second, expected=first)
        later = await completions(await ask())
        text += "".join([delta.text async for delta in answers])
        return text, later[0]

    old, new = serve(model, settings, use)
    assert old == model.adapted(trained(model, 1)).generate("a", params).text
    assert new == model.adapted(trained(model, 2)).generate("a", params).text


def test_closing_answers_ends_the_work(model, settings):
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    seen: list[Answered] = []

    async def use(runtime):
        runtime.text._note = seen.append
        answers = await runtime.text.complete(["a"], params, Caller(id=RequestId("r")))
        async with answers:
            await anext(answers)
            assert runtime.num_requests == 1
        await idle(runtime)
        cancelled = asyncio.create_task(
            (await runtime.text.complete(["a", "b"], params, Caller())).finish()
        )
        await asyncio.sleep(0.02)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await idle(runtime)

    serve(model, settings, use)
    assert [(a.id, a.outcome) for a in seen[:1]] == [("r", "abort")]
    assert {a.outcome for a in seen} == {"abort"}
    assert len(seen) == 3


def test_how_answers_ended_is_told_with_all_tokens(model, settings):
    seen: list[Answered] = []
    text = model.generate("a", GREEDY).text
    assert len(text) > 4

    async def use(runtime):
        runtime.text._note = seen.append
        caller = Caller(id=RequestId("r"), adapter="poet@", may_be_learnt=False)
        with pytest.raises(Exception, match="not"):
            await runtime.text.complete(["a"], GREEDY, caller)
        stop = SamplingParams(temperature=0, max_tokens=12, stop=(text[2:4],))
        await (await runtime.text.complete(["a"], stop, Caller(id=RequestId("s")))).finish()
        caller = Caller(id=RequestId("n"), adapter="poet", may_be_learnt=False)
        await (await runtime.text.complete(["a"], GREEDY, caller, num_answers=2)).finish()

    serve(model, settings, use)
    assert [(a.id, a.outcome, a.adapter, a.may_be_learnt) for a in seen] == [
        ("s", "stop_string", None, True),
        ("n", "length", "poet", False),
        ("n/1", "length", "poet", False),
    ]
    assert seen[0].prompt == tuple(model.tokenizer.encode("a"))
    assert len(seen[1].answer) == 12


def test_a_grammar_holds_an_answer(model, settings):
    grammar = Grammar(kind="regex", text="[ab]{3}")
    params = SamplingParams(max_tokens=10, grammar=grammar, seed=1)

    async def use(runtime):
        return await completions(await runtime.text.complete(["a"], params, Caller()))

    [text] = serve(model, settings, use)
    assert len(text) == 3
    assert set(text) <= set("ab")


def test_what_cannot_be_answered_is_refused(model, settings):
    async def use(runtime):
        text = runtime.text
        for adapter, kind in (
            ("nobody", AdapterNotFoundError),
            ("stranger", IncompatibleAdapterError),
        ):
            with pytest.raises(kind):
                await text.complete(["a"], GREEDY, Caller(adapter=adapter))
        with pytest.raises(InvalidRequestError):
            await text.complete(["a"] * 33, GREEDY, Caller(), num_answers=2)
        with pytest.raises(ContextTooLongError):
            await (await text.complete(["a" * 5000], GREEDY, Caller())).finish()
        with pytest.raises(InvalidRequestError):
            await text.complete([[]], GREEDY, Caller())
        await idle(runtime)

    serve(model, settings, use)


def test_a_runtime_that_was_closed_refuses(model, settings):
    async def main():
        async with Runtime(model, settings) as runtime:
            pass
        assert isinstance(runtime.failure, EngineStoppedError)

    asyncio.run(main())


def test_two_runtimes_live_in_one_process(model, settings, home):
    other = Model.load(home / "other", settings=settings)

    async def gathered():
        async with Runtime(model, settings) as one, Runtime(other, settings) as two:
            first = await one.text.complete(["a"], GREEDY, Caller())
            second = await two.text.complete(["a"], GREEDY, Caller())
            return await completions(first) + await completions(second)

    texts = asyncio.run(gathered())
    assert texts == [m.generate("a", GREEDY).text for m in (model, other)]


def test_decoders_embed_with_their_last_position(model, settings):
    texts = ["one", "a longer text", "x"]

    async def use(runtime):
        return await runtime.text.embed(texts, Caller())

    embedded = serve(model, settings, use)
    assert embedded.num_tokens == sum(len(model.tokenizer.encode(text)) for text in texts)
    lengths = {len(vector) for vector in embedded.vectors}
    assert lengths == {model.info.width}
    assert len(set(embedded.vectors)) == 3


def test_encoders_embed_and_do_nothing_else(embedding_model, settings):
    model = Model.load(embedding_model, settings=settings, dtype="float32")
    texts = ["one", "a longer text about something", "x"] * 30

    async def use(runtime):
        with pytest.raises(UnsupportedError):
            await runtime.text.complete(["a"], GREEDY, Caller())
        with pytest.raises(UnsupportedError):
            await runtime.text.embed(["a"], Caller(adapter="poet"))
        with pytest.raises(ContextTooLongError):
            await runtime.text.embed(["a", "word " * 3000, "b"], Caller())
        await idle(runtime)
        return await runtime.text.embed(texts, Caller())

    vectors = np.array(serve(model, settings, use).vectors)
    np.testing.assert_allclose(vectors, model.embed(texts), atol=1e-5)


def test_an_answer_that_a_stop_string_ended_is_computed_no_further(model, settings):
    params = SamplingParams(temperature=1, seed=4, max_tokens=200, ignore_eos=True)
    alone = [model.generate("a", params, seed=4 + n).text for n in range(2)]
    stop = next(piece for n in range(9) if (piece := alone[0][n : n + 2]) not in alone[1])

    async def use(runtime):
        answers = await runtime.text.complete(
            ["a"], replace(params, stop=(stop,)), Caller(), num_answers=2
        )
        async with answers:
            running = [runtime._engine._core._scheduler.num_running async for _ in answers]
        return answers.completions, running

    completions, running = serve(model, settings, use)
    assert [found.finish_reason for found in completions] == ["stop", "length"]
    assert completions[0].text == alone[0][: alone[0].index(stop)]
    assert completions[1].text == alone[1]
    assert running[0] == 2
    assert set(running[len(running) // 2 : -5]) == {1}
