"""What a step of the engine takes outside the model, and for what: prints JSON.

Processor time. All that the main thread does is the event loop's: streams and their readers.
The rest is the engine thread's; its parts are measured one by one.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cases import prompt
from benchmarks.engine_worker import Results, core_of, load, request
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import EngineCore
from hyprstream.engine.engine import Engine
from hyprstream.models.decoder import Decoder

NUM_REQUESTS = 16
NEW_TOKENS = 64
NUM_WARM = 3  # rounds of requests, until all blocks have been used before, as in a long run


class Clock:
    """Seconds of a thread's processor time inside methods, without those of methods within."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.num_calls: dict[str, int] = {}
        self._within = 0.0

    def reset(self) -> None:
        self.seconds.clear()
        self.num_calls.clear()

    @contextmanager
    def watching(self, methods: dict[str, list[tuple[object, str]]]) -> Iterator[None]:
        """Measure methods of single objects, by the name of what they are part of."""
        for part, places in methods.items():
            for owner, name in places:
                vars(owner)[name] = self._timed(part, getattr(owner, name))
        try:
            yield
        finally:
            for places in methods.values():
                for owner, name in places:
                    vars(owner).pop(name, None)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outside, self._within = self._within, 0.0
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                took = time.thread_time() - began
                self.seconds[part] = self.seconds.get(part, 0.0) + took - self._within
                self.num_calls[part] = self.num_calls.get(part, 0) + 1
                self._within = outside + took

        return call


def overhead(model: Decoder) -> Results:
    """Milliseconds of a step of 16 requests outside the model: in all, and by part.

    The parts come from a run of their own, since looking at the clock so often takes time. The
    loop works beside the model of the next step, the thread of the engine before and after it.
    """
    core = core_of(model, kv_memory_bytes=1 << 26)
    scheduler, runner = vars(core)["_scheduler"], vars(core)["_runner"]
    least: dict[str, list[tuple[object, str]]] = {
        "model": [(model, "forward"), (model, "logits"), (model, "peaks")],
        "step": [(core, "step")],
    }
    parts: dict[str, list[tuple[object, str]]] = {
        "batch": [(runner, "_forward")],
        "tokens": [(vars(runner)["_peaks"], "find"), (runner, "run")],
        "decisions": [(scheduler, "schedule"), (scheduler, "update")],
    }
    results = {"all": measured(core, least)["all"]}
    by_part = measured(core, {**least, **parts})
    by_part["rest"] = 2 * by_part["all"] - sum(by_part.values())
    by_part["thread"] = by_part["all"] - by_part["loop"]
    names = ("loop", "thread", "batch", "tokens", "decisions", "rest")
    return results | {name: by_part[name] for name in names}


def measured(core: EngineCore, methods: dict[str, list[tuple[object, str]]]) -> Results:
    """Milliseconds of a step: of methods by name, of the event loop, of all but the model."""
    clock = Clock()
    with clock.watching(methods):
        seconds, loop_seconds = asyncio.run(serve(core, clock))
    num_steps = clock.num_calls["step"]
    spent = {"all": seconds - clock.seconds.pop("model"), "loop": loop_seconds}
    del clock.seconds["step"]
    return {name: 1000 * took / num_steps for name, took in (spent | clock.seconds).items()}


async def serve(core: EngineCore, clock: Clock) -> tuple[float, float]:
    """Serve requests of one length; return the seconds of the process and of this thread."""

    async def read(stream: Any) -> None:
        async for _ in stream:
            pass

    async def answer(engine: Engine) -> tuple[float, float]:
        numbers = range(NUM_REQUESTS)
        streams = [engine.submit(request(n, prompt(n), NEW_TOKENS)) for n in numbers]
        for stream in streams:
            await anext(stream)
        clock.reset()
        began, loop_began = time.process_time(), time.thread_time()
        await asyncio.gather(*(read(stream) for stream in streams))
        return time.process_time() - began, time.thread_time() - loop_began

    async with Engine(core, EngineConfig()) as engine:
        for _ in range(NUM_WARM):
            await answer(engine)
        return await answer(engine)


def main(file: str, option: str) -> None:
    torch.set_num_threads(1)
    json.dump(overhead(load(Path(file), option)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
