"""Steps on a request's own prompt: they change its answer, and nothing else."""

import asyncio
from dataclasses import replace

import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import SamplingParams
from hyprstream.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedError,
    VersionNotFoundError,
)
from hyprstream.runtime.adapted import load_adapter
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.fitting import learnt_texts
from hyprstream.runtime.fitting_config import FittingConfig
from hyprstream.runtime.fitting_request import Fit, FittingStats
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.model import Model
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.text_service import Answered, Caller
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.runtime.adapted_models import commit, make_folder, trained

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
TEXT = "the ship lies at pier seven"
MESSAGES = [{"role": "system", "content": TEXT}, {"role": "user", "content": "where is it"}]
FIT = Fit(steps=2, learning_rate=0.01)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    adapt = FittingConfig(enabled=True, max_prompt_tokens=128, max_at_a_time=2, rank=4)
    return Settings(
        home=tmp_path_factory.mktemp("home"),
        engine=EngineConfig(kv_memory_bytes=1 << 22, max_sequences=16, num_slots=2),
        train=LearningConfig(adapt=adapt),
    )


@pytest.fixture(scope="module")
def model(settings) -> Model:
    model = Model.load(make_folder(settings.home / "model"), settings=settings)
    with open_adapters(settings) as adapters:
        commit(adapters, "poet", model, trained(model, 1))
    return model


def serve(model, settings, use):
    """Run `use` on a runtime of the model."""

    async def main():
        async with Runtime(model, settings) as runtime:
            return await use(runtime)

    return asyncio.run(main())


async def chat(runtime, adapter=None, fit=None):
    answers = await runtime.text.chat(MESSAGES, GREEDY, Caller(adapter=adapter, fit=fit))
    [completion] = await answers.finish()
    return completion.text, answers


async def settled(runtime, known):
    """Wait until nothing is left of fitting but what the engine knew before."""
    async with asyncio.timeout(10):
        while True:
            stats = await runtime.stats()
            if not runtime.num_requests and not runtime.fitting.num_open:
                break
            await asyncio.sleep(0.005)
    assert stats.resident <= known
    assert stats.num_free_blocks == stats.num_blocks
    assert not runtime.fitting._weights
    return stats


def test_the_prompt_is_more_likely_by_as_much_as_is_told(model, settings):
    async def use(runtime):
        found = []
        for adapter in (None, "poet"):
            name = f"kept-{adapter}"
            said, answers = await chat(runtime, adapter, replace(FIT, keep=name))
            texts = [said, (await chat(runtime, adapter, FIT))[0], (await chat(runtime, name))[0]]
            found.append((adapter, answers.fitted, texts, (await chat(runtime, adapter))[0]))
        return found

    samples = [Sample.text(model.tokenizer.encode(text)) for text in learnt_texts(MESSAGES)]
    trainer = Trainer(model.decoder)
    counts = [len(sample.token_ids) - 1 for sample in samples]

    def mean(weights):
        losses = trainer.evaluate(weights, samples)
        return sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)

    for adapter, fitted, texts, plain in serve(model, settings, use):
        with open_adapters(settings) as adapters:
            kept = load_adapter(adapters, fitted.kept, model).weights
            start = load_adapter(adapters, adapter, model).weights if adapter else None
            parent = adapters.manifest(adapters.resolve(fitted.kept)).parent
            assert parent == (adapters.resolve(adapter) if adapter else None)
        assert fitted.num_tokens == sum(counts)
        assert fitted.loss_before == pytest.approx(mean(start), rel=1e-4)
        assert fitted.loss_after == pytest.approx(mean(kept), rel=1e-4)
        assert fitted.loss_after < fitted.loss_before - 0.05
        # The same request gives the same answer, and so does the version that was kept.
        assert len(set(texts)) == 1
        assert plain not in texts


def test_others_are_answered_as_if_there_had_been_none(model, settings):
    params = replace(GREEDY, logprobs=5)

    async def use(runtime):
        async def plain(adapter):
            caller = Caller(adapter=adapter)
            [found] = await (await runtime.text.chat(MESSAGES, params, caller)).finish()
            return found.text, found.tokens

        adapters = [None, "poet"]
        for adapter in adapters:  # the next time its keys and values are there
            await plain(adapter)
        before = [await plain(adapter) for adapter in adapters]
        known = (await runtime.stats()).resident
        beside = await asyncio.gather(
            chat(runtime, None, FIT), chat(runtime, "poet", FIT), *map(plain, adapters)
        )
        after = [await plain(adapter) for adapter in adapters]
        fitted = {answers.version for _, answers in beside[:2]}
        assert len(fitted) == 2
        stats = await settled(runtime, known)
        assert not fitted & stats.resident
        for version in fitted:  # it cannot be named
            with pytest.raises(VersionNotFoundError):
                await runtime.resolve(f"poet@{version}")
        return before, list(beside[2:]), after, stats.adapter_bytes

    before, beside, after, size = serve(model, settings, use)
    assert before == after
    assert [text for text, _ in beside] == [text for text, _ in before]
    assert size == trained(model, 1).size_bytes


def test_who_leaves_while_it_is_fitted_or_answered_leaves_nothing_behind(model, settings):
    params = replace(GREEDY, max_tokens=100)

    async def use(runtime):
        known = (await runtime.stats()).resident
        names = {adapter.name for adapter in runtime.adapters.list()}
        # While it is fitted: the steps are more than will be taken.
        fit = Fit(steps=8, keep="never")
        task = asyncio.create_task(runtime.text.chat(MESSAGES, params, Caller(fit=fit)))
        async with asyncio.timeout(10):
            while not runtime.fitting.num_open:
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settled(runtime, known)
        # While it is answered.
        answers = await runtime.text.chat(MESSAGES, params, Caller(fit=FIT))
        await anext(answers)
        await answers.close()
        await settled(runtime, known)
        assert {adapter.name for adapter in runtime.adapters.list()} == names
        return runtime.fitting.stats

    assert serve(model, settings, use) == FittingStats(num_fitted=1, num_failed=1, num_steps=2)


def test_what_is_out_of_bounds_is_refused_before_a_step_is_taken(model, settings):
    wrong = [
        (Fit(steps=0), TEXT),
        (Fit(steps=9), TEXT),
        (Fit(learning_rate=0.02), TEXT),
        (Fit(learning_rate=float("nan")), TEXT),
        (Fit(), "x" * 129),
        (Fit(), "x"),
    ]

    async def use(runtime):
        for fit, prompt in wrong:
            with pytest.raises(InvalidRequestError):
                await runtime.text.complete([prompt], GREEDY, Caller(fit=fit))
        with pytest.raises(AdapterExistsError):
            await chat(runtime, None, replace(FIT, keep="poet"))
        with pytest.raises(AdapterNotFoundError):
            await chat(runtime, "nobody", FIT)
        assert (runtime.fitting.stats.num_steps, runtime.fitting.num_open) == (0, 0)
        # As many at a time as may be, and nobody learns from what they are told.
        noted: list[Answered] = []
        runtime.observe(noted.append)
        asked = [asyncio.create_task(chat(runtime, "poet", FIT)) for _ in range(3)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found].count(QueueFullError) == 1
        return noted

    noted = serve(model, settings, use)
    assert [(one.adapter, one.version, one.may_be_learnt) for one in noted] == [
        ("poet", None, False)
    ] * 2


@pytest.mark.parametrize(
    "train",
    [LearningConfig(), LearningConfig(enabled=False, adapt=FittingConfig(enabled=True))],
)
def test_it_is_refused_where_it_is_switched_off(model, settings, train):
    async def use(runtime):
        with pytest.raises(UnsupportedError, match="adapted"):
            await chat(runtime, None, FIT)

    serve(model, settings.model_copy(update={"train": train}), use)
