"""The asyncio front: streams, aborts, limits, failures, and work in the background."""

import asyncio
import contextlib
import gc
import itertools
import random
import threading

import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.errors import (
    ContextTooLongError,
    EngineStoppedError,
    HyprstreamError,
    InvalidRequestError,
    QueueFullError,
    VersionNotFoundError,
)
from hyprstream.refs import RequestId, VersionId
from tests.engine.fakes import FakeClock, FakeTrainer, Parts, answer_alone

ids = itertools.count()


def make_request(num_tokens=8, prompt=(1, 2, 3), request_id=None, **options):
    name = f"r{next(ids)}" if request_id is None else request_id
    params = SamplingParams(max_tokens=num_tokens)
    return Request(id=RequestId(name), token_ids=tuple(prompt), params=params, **options)


def run(coroutine):
    """Run to the end, within a time in which nothing that works fails."""

    async def limited():
        return await asyncio.wait_for(coroutine, timeout=20)

    return asyncio.run(limited())


async def collect(stream):
    return [event.token.token_id async for event in stream]


class Gate:
    """Lets the engine thread take so many steps and holds it before the next."""

    def __init__(self, steps=0):
        self._permits = threading.Semaphore(steps)
        self.reached = threading.Event()

    def __call__(self, _plan):
        self.reached.set()
        assert self._permits.acquire(timeout=20)

    def open(self, steps=1_000_000):
        self._permits.release(steps)


def broken(_plan):
    raise ValueError("the device is on fire")


def test_concurrent_requests_get_what_each_gets_alone():
    parts = Parts()
    requests = [make_request(n + 1, prompt=range(n % 5 + 1)) for n in range(40)]

    async def main():
        async with parts.engine() as engine:
            return await asyncio.gather(*(collect(engine.submit(r)) for r in requests))

    assert run(main()) == [answer_alone(request) for request in requests]
    parts.assert_clean()


def test_answers_of_one_request_come_in_one_stream():
    parts = Parts()
    request = make_request(6, num_answers=3)

    async def main():
        async with parts.engine() as engine, engine.submit(request) as stream:
            return [event async for event in stream]

    events = run(main())
    for index in range(3):
        mine = [e.token.token_id for e in events if e.sequence_id.answer == index]
        assert mine == answer_alone(request, index)
    assert [event.is_last for event in events].count(True) == 3


def test_events_of_a_step_reach_the_loop_in_one_call(monkeypatch):
    parts = Parts()
    calls = []

    async def main():
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        def counted(callback, *args):
            calls.append(callback)
            return original(callback, *args)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        async with parts.engine() as engine:
            await asyncio.gather(*(collect(engine.submit(make_request(10))) for _ in range(8)))

    run(main())
    assert len(calls) <= parts.runner.num_steps + 1  # and one for the thread's end


def test_closing_a_stream_aborts_its_request():
    gate = Gate(2)
    parts = Parts(on_step=gate)

    async def main():
        async with parts.engine() as engine:
            other = make_request(5)
            reading = asyncio.create_task(collect(engine.submit(other)))
            async with engine.submit(make_request(40)) as stream:
                await anext(stream)
            gate.open()
            assert await reading == answer_alone(other)
            while engine.num_requests:
                await asyncio.sleep(0)
            assert [event async for event in stream] == []

    run(main())
    parts.assert_clean()
    assert parts.runner.num_steps < 40


def test_aborting_a_request_ends_its_stream_without_a_last_event():
    gate = Gate(1)
    parts = Parts(on_step=gate)

    async def main():
        async with parts.engine() as engine:
            request = make_request(40)
            stream = engine.submit(request)
            first = await anext(stream)
            engine.abort(request.id)
            engine.abort(RequestId("unknown"))
            gate.open()
            return [first, *[event async for event in stream]]

    events = run(main())
    assert not any(event.is_last for event in events)
    parts.assert_clean()


@pytest.mark.parametrize("ended", [(1,), (0, 2), (0, 1, 2)], ids=str)
def test_one_of_several_answers_can_be_ended_and_is_computed_no_further(ended):
    gate = Gate(6)
    parts = Parts(on_step=gate)
    request = make_request(60, num_answers=3)

    async def main():
        events = []
        async with parts.engine() as engine, engine.submit(request) as stream:
            async for event in stream:
                events.append(event)
                if len(events) == 9:
                    for answer in (*ended, *ended):  # twice is once
                        stream.end_answer(answer)
                    gate.open()
            stream.end_answer(0)  # of a stream that is over: nothing
        return events

    events = run(main())
    for index in range(3):
        mine = [e.token.token_id for e in events if e.sequence_id.answer == index]
        alone = answer_alone(request, index)
        assert mine == (alone[: len(mine)] if index in ended else alone)
        assert (len(mine) < 10) == (index in ended)
    parts.assert_clean()


def test_cancelling_a_reader_aborts_its_request():
    gate = Gate()
    parts = Parts(on_step=gate)

    async def main():
        async with parts.engine() as engine:
            task = asyncio.create_task(collect(engine.submit(make_request(40))))
            await asyncio.to_thread(gate.reached.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            while engine.num_requests:
                await asyncio.sleep(0)

    run(main())
    parts.assert_clean()
    assert parts.runner.num_steps < 40


def test_a_forgotten_stream_aborts_its_request():
    gate = Gate(3)
    parts = Parts(on_step=gate)

    async def main():
        async with parts.engine() as engine:
            async for _ in engine.submit(make_request(40)):
                break
            gc.collect()
            gate.open()
            while engine.num_requests:
                await asyncio.sleep(0)

    run(main())
    parts.assert_clean()
    assert parts.runner.num_steps < 40


def test_an_id_is_free_again_only_when_the_engine_is_through_with_it():
    gate = Gate(1)
    parts = Parts(on_step=gate)

    async def main():
        async with parts.engine() as engine:
            stream = engine.submit(make_request(40, request_id="same"))
            await anext(stream)
            stream.close()
            with pytest.raises(InvalidRequestError, match="same"):
                engine.submit(make_request(request_id="same"))
            gate.open()
            while engine.num_requests:
                await asyncio.sleep(0)
            again = make_request(4, prompt=(4, 4), request_id="same")
            assert await collect(engine.submit(again)) == answer_alone(again)

    run(main())


def test_a_refused_request_fails_alone():
    parts = Parts()
    good = make_request(6)

    async def main():
        async with parts.engine() as engine:
            reading = asyncio.create_task(collect(engine.submit(good)))
            with pytest.raises(VersionNotFoundError, match="unheard-of"):
                await anext(engine.submit(make_request(adapter=VersionId("unheard-of"))))
            with pytest.raises(ContextTooLongError):
                await anext(engine.submit(make_request(prompt=range(64))))
            assert await reading == answer_alone(good)

    run(main())
    parts.assert_clean()


def test_submit_refuses_more_requests_than_may_wait():
    gate = Gate()
    parts = Parts(EngineConfig(max_waiting=3, block_tokens=4), on_step=gate)

    async def main():
        async with parts.engine() as engine:
            streams = [engine.submit(make_request(4)) for _ in range(3)]
            with pytest.raises(QueueFullError, match="3"):
                engine.submit(make_request(4))
            gate.open()
            await asyncio.gather(*(collect(stream) for stream in streams))
            return len(await collect(engine.submit(make_request(4))))

    assert run(main()) == 4


def test_a_request_past_its_deadline_fails_and_frees_what_it_held():
    clock = FakeClock()

    def tick(_plan):
        clock.now += 1

    parts = Parts(clock=clock, on_step=tick)

    async def main():
        async with parts.engine() as engine:
            with pytest.raises(HyprstreamError, match="deadline"):
                await collect(engine.submit(make_request(40, deadline=5.0)))
            assert len(await collect(engine.submit(make_request(10)))) == 10

    run(main())
    parts.assert_clean()


def test_a_failing_step_fails_every_stream_and_every_later_call():
    gate = Gate(2)
    parts = Parts(on_step=gate)

    async def main():
        engine = parts.engine()
        engine.start()
        streams = [engine.submit(make_request(40)) for _ in range(3)]
        await anext(streams[0])
        parts.runner.on_step = broken
        pending = asyncio.create_task(engine.retire(VersionId("none")))
        gate.open()
        for stream in streams:
            with pytest.raises(EngineStoppedError, match="on fire") as caught:
                await collect(stream)
            assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(HyprstreamError):
            await pending
        with pytest.raises(EngineStoppedError, match="on fire"):
            engine.submit(make_request())
        with pytest.raises(EngineStoppedError, match="on fire"):
            await engine.retire(VersionId("none"))
        assert engine.failure is not None
        assert engine.num_requests == 0
        await engine.stop()

    run(main())


def test_a_failing_slice_of_background_work_ends_the_engine_too():
    class Broken:
        def ready(self):
            return True

        def run_slice(self):
            raise ZeroDivisionError

    async def main():
        engine = Parts().engine()
        engine.start(Broken())
        stream = engine.submit(make_request(40))
        with pytest.raises(EngineStoppedError, match="ZeroDivisionError"):
            await collect(stream)

    run(main())


def test_stopping_fails_what_runs_and_frees_it():
    gate = Gate(1)
    parts = Parts(on_step=gate)

    async def main():
        engine = parts.engine()
        engine.start()
        stream = engine.submit(make_request(40))
        await anext(stream)
        stopping = asyncio.create_task(engine.stop())
        gate.open()
        await stopping
        with pytest.raises(EngineStoppedError, match="stopped"):
            await collect(stream)
        with pytest.raises(EngineStoppedError, match="stopped"):
            engine.submit(make_request())
        await engine.stop()

    run(main())
    parts.assert_clean()


def test_draining_finishes_what_runs_and_refuses_the_rest():
    gate = Gate(1)
    parts = Parts(on_step=gate)
    request = make_request(20)

    async def main():
        engine = parts.engine()
        engine.start()
        reading = asyncio.create_task(collect(engine.submit(request)))
        await asyncio.to_thread(gate.reached.wait)
        stopping = asyncio.create_task(engine.stop(drain=True))
        await asyncio.sleep(0)
        with pytest.raises(EngineStoppedError):
            engine.submit(make_request())
        gate.open()
        await stopping
        return await reading

    assert run(main()) == answer_alone(request)
    parts.assert_clean()


def test_an_engine_that_was_never_started_refuses_and_stops_at_once():
    async def main():
        engine = Parts().engine()
        with pytest.raises(EngineStoppedError, match="started"):
            engine.submit(make_request())
        await engine.stop()

    run(main())


def test_a_loop_that_closes_without_stopping_the_engine_ends_its_thread():
    gate = Gate(1)
    parts = Parts(on_step=gate)
    before = set(threading.enumerate())

    async def main():
        engine = parts.engine()
        engine.start()
        stream = engine.submit(make_request(60))
        await anext(stream)
        return stream

    stream = asyncio.run(main())
    (thread,) = {t for t in threading.enumerate() if t.name == "hyprstream-engine"} - before
    gate.open()
    thread.join(timeout=20)
    assert not thread.is_alive()
    stream.close()
    parts.assert_clean()


def test_two_engines_live_in_one_process():
    requests = [make_request(9, prompt=(n,)) for n in range(6)]

    async def main():
        async with Parts().engine() as one, Parts().engine() as two:
            engines = itertools.cycle([one, two])
            return await asyncio.gather(
                *(collect(next(engines).submit(request)) for request in requests)
            )

    assert run(main()) == [answer_alone(request) for request in requests]


@pytest.mark.parametrize("seed", range(5))
def test_clients_that_leave_at_random_leave_nothing_behind(seed):
    rng = random.Random(seed)  # noqa: S311 - a reproducible crowd
    parts = Parts(EngineConfig(block_tokens=4, max_sequences=6, max_batch_tokens=16))
    requests = [
        make_request(rng.randint(1, 30), prompt=range(rng.randint(1, 20))) for _ in range(60)
    ]

    async def client(engine, request):
        patience = rng.randint(0, 40)
        received = []
        try:
            async with engine.submit(request) as stream:
                async for event in stream:
                    received.append(event.token.token_id)
                    if len(received) > patience:
                        break
        finally:
            assert received == answer_alone(request)[: len(received)]
        return received

    async def main():
        before = asyncio.all_tasks()
        async with parts.engine() as engine:
            tasks = [asyncio.create_task(client(engine, request)) for request in requests]
            for task in rng.sample(tasks, 20):
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            while engine.num_requests:
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == before

    run(main())
    parts.assert_clean()


def test_background_work_keeps_to_its_share_while_requests_wait():
    clock = FakeClock()

    def tick(_plan):
        clock.now += 0.01

    trainer = FakeTrainer(clock, slice_s=0.02, limit=100_000)
    at_end: list[int] = []

    def note(plan):
        tick(plan)
        at_end[:] = [trainer.num_slices]

    config = EngineConfig(background_share=0.25, background_every=1, block_tokens=4)
    parts = Parts(config, clock=clock, on_step=note)
    started = clock.now

    async def main():
        engine = parts.engine()
        streams = None
        engine.start(trainer)
        streams = [engine.submit(make_request(50)) for _ in range(4)]
        await asyncio.gather(*(collect(stream) for stream in streams))
        await engine.stop()

    trainer.limit = 0  # not before the requests are there

    def begin(plan):
        trainer.limit = 100_000
        parts.runner.on_step = note
        note(plan)

    parts.runner.on_step = begin
    run(main())
    slices = at_end[0] * trainer.slice_s
    steps = parts.runner.num_steps * 0.01
    assert started == 0.0
    assert slices / (slices + steps) == pytest.approx(0.25, abs=0.05)


def test_background_work_runs_without_limit_while_nobody_waits():
    done = threading.Event()

    def note(number):
        if number == 50:
            done.set()

    trainer = FakeTrainer(FakeClock(), slice_s=1.0, limit=50, on_slice=note)

    async def main():
        engine = Parts(EngineConfig(background_share=0.0, block_tokens=4)).engine()
        engine.start(trainer)
        await asyncio.to_thread(done.wait, 20)
        assert len(await collect(engine.submit(make_request(4)))) == 4
        await engine.stop()

    run(main())
    assert trainer.num_slices == 50


def test_an_idle_engine_notices_background_work_that_becomes_ready():
    done = threading.Event()

    trainer = FakeTrainer(FakeClock(), slice_s=1.0, limit=0, on_slice=lambda _number: done.set())

    async def main():
        engine = Parts().engine()
        engine.start(trainer)
        await collect(engine.submit(make_request(4)))
        trainer.limit = 1
        assert await asyncio.to_thread(done.wait, 20)
        await engine.stop()

    run(main())
