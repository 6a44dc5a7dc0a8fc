"""Several base models: loaded when they are asked for, unloaded when nobody does."""

import asyncio
import weakref
from dataclasses import replace
from typing import Any

import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import SamplingParams
from hyprstream.errors import (
    IncompatibleAdapterError,
    InvalidSettingsError,
    ModelNotFoundError,
    ModelsBusyError,
)
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.bases import Bases, Serving
from hyprstream.runtime.model import Model
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.text_service import Caller
from tests.runtime.adapted_models import commit, make_folder, trained

MESSAGES = [{"role": "user", "content": "Hello"}]
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    for number, name in enumerate(("a", "b", "c")):
        make_folder(folder / name, seed=number)
    return folder


@pytest.fixture(scope="module")
def alone(home) -> dict[str, str]:
    """What each model says, and an adapter of `b`."""
    settings = Settings(home=home)
    models = {name: Model.load(home / name, settings=settings) for name in ("a", "b", "c")}
    with open_adapters(settings) as adapters:
        commit(adapters, "clerk", models["b"], trained(models["b"], 1))
    said = {name: model.chat(MESSAGES, GREEDY).text for name, model in models.items()}
    adapted = models["b"].adapted(trained(models["b"], 1))
    return {**said, "b:clerk": adapted.chat(MESSAGES, GREEDY).text}


def run(home, use, *, max_wait_s=5.0, others=("b", "c"), **config) -> Any:
    """Use the bases of a server."""
    models = tuple(str(home / name) for name in others)
    settings = Settings(
        home=home,
        engine=EngineConfig(kv_memory_bytes=1 << 21),
        server=ServerConfig(models=models, **{"max_loaded": 2, "keep_loaded_s": 0.0, **config}),
    )

    async def main():
        model = Model.load(home / "a", settings=settings)
        async with (
            Runtime(model, settings) as runtime,
            Bases(runtime, max_wait_s=max_wait_s) as bases,
        ):
            async with asyncio.timeout(60):
                return await use(bases)

    return asyncio.run(main())


async def ask(serving: Serving, adapter: str | None = None) -> str:
    caller = Caller(adapter=adapter)
    answers = await serving.runtime.text.chat(MESSAGES, GREEDY, caller)
    return (await answers.finish())[0].text


async def asked(bases: Bases, name: str, adapter: str | None = None) -> str:
    async with bases.use(name) as serving:
        return await ask(serving, adapter)


def states(bases: Bases) -> list[str]:
    return [running.state for running in bases.listed()]


def test_each_model_answers_as_itself_and_is_loaded_when_it_is_asked_for(home, alone):
    async def use(bases: Bases):
        assert states(bases) == ["loaded", "unloaded", "unloaded"]
        assert bases.fingerprint("b") is None
        said = [await asked(bases, name) for name in ("a", "b", "c")]
        assert states(bases) == ["loaded", "loaded", "loaded"]
        assert (bases.listed()[1].size_bytes or 0) > 0
        assert await asked(bases, "b", "clerk") == alone["b:clerk"]
        assert [found.ref for found in bases.listed()[1].adapters] == ["clerk"]
        with pytest.raises(IncompatibleAdapterError, match="was made for"):
            await asked(bases, "c", "clerk")
        with pytest.raises(IncompatibleAdapterError):
            await asked(bases, "a", "clerk")
        return said

    said = run(home, use, max_loaded=3)
    assert said == [alone["a"], alone["b"], alone["c"]]
    assert len(set(said)) == 3


def test_no_more_are_loaded_than_may_be_and_the_one_unused_for_longest_goes(home):
    async def use(bases: Bases):
        for name in ("b", "c"):
            await asked(bases, name)
            loaded = [found.name for found in bases.listed() if found.state == "loaded"]
            assert loaded == ["a", name]

    run(home, use)


def test_a_model_that_works_is_not_unloaded_and_others_wait_for_it(home, alone):
    async def use(bases: Bases):
        async with bases.use("b") as serving:
            waiting = asyncio.create_task(asked(bases, "c"))
            for _ in range(5):
                await asyncio.sleep(0.02)
                assert states(bases) == ["loaded", "loaded", "loading"]
            assert await ask(serving) == alone["b"]
        assert await waiting == alone["c"]
        assert states(bases) == ["loaded", "unloaded", "loaded"]

    run(home, use)


def test_who_waits_for_too_long_is_told_that_all_models_work(home, alone):
    async def use(bases: Bases):
        async with bases.use("b"):
            with pytest.raises(ModelsBusyError):
                await asked(bases, "c")
        return await asked(bases, "c")

    assert run(home, use, max_wait_s=0.05) == alone["c"]


def test_what_nobody_uses_is_unloaded_and_its_memory_given_back(home, alone):
    async def use(bases: Bases):
        async with bases.use("b") as serving:
            await ask(serving, "clerk")
            network = weakref.ref(serving.runtime.model.network)
            assert bases.listed()[1].until is None
            await asyncio.sleep(0.3)
            assert states(bases)[1] == "loaded"
        del serving
        assert bases.listed()[1].until is not None
        while states(bases)[1] == "loaded":
            await asyncio.sleep(0.02)
        again = asyncio.create_task(asked(bases, "b"))  # while it is on its way out
        assert await again == alone["b"]
        await asyncio.sleep(0)
        assert network() is None
        assert states(bases)[0] == "loaded"

    run(home, use, keep_loaded_s=0.1)


def test_many_that_ask_while_models_come_and_go_are_all_answered(home, alone):
    async def use(bases: Bases):
        names = [("a", "b", "c")[n % 3] for n in range(24)]
        said = await asyncio.gather(*(asked(bases, name) for name in names))
        assert said == [alone[name] for name in names]

    run(home, use, keep_loaded_s=0.01, max_wait_s=60.0)


def test_who_goes_away_while_a_model_is_loaded_leaves_it_to_the_others(home, alone):
    async def use(bases: Bases):
        one, other = (asyncio.create_task(asked(bases, "b")) for _ in range(2))
        await asyncio.sleep(0.01)
        one.cancel()
        assert await other == alone["b"]
        with pytest.raises(asyncio.CancelledError):
            await one

    run(home, use)


def test_a_model_that_cannot_be_loaded_is_told_each_time(home):
    async def use(bases: Bases):
        for _ in range(2):
            with pytest.raises(ModelNotFoundError):
                await asked(bases, "nowhere")
        assert states(bases) == ["loaded", "unloaded"]

    run(home, use, others=("nowhere",))


def test_names_are_told_apart(home):
    with pytest.raises(InvalidSettingsError, match="alike"):
        run(home, lambda _bases: None, others=("b", "b"))
    with pytest.raises(InvalidSettingsError):
        ServerConfig(models=("x",), max_loaded=1)
    assert replace(ServerConfig(), max_loaded=1).models == ()

    async def use(bases: Bases):
        found = [bases.find(name) for name in ("a", "b", str(home / "b"), "poet")]
        assert found == ["a", "b", None, None]

    run(home, use)
