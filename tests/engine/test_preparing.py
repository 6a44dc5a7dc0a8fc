"""Grammars are built and adapters read while the engine serves others."""

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from hyprstream.engine.preparing import Preparations
from hyprstream.engine.request import Grammar, Request, SamplingParams
from hyprstream.engine.versions import HostVersions
from hyprstream.errors import (
    EngineStoppedError,
    InvalidRequestError,
    UnavailableError,
    VersionNotFoundError,
)
from hyprstream.refs import RequestId, VersionId
from tests.engine.adapters import low_rank
from tests.engine.fakes import Parts, answer_alone

ids = itertools.count()


def make_request(grammar=None, adapter=None, num_tokens=4):
    grammar = None if grammar is None else Grammar(kind="regex", text=grammar)
    return Request(
        id=RequestId(f"p{next(ids)}"),
        token_ids=(1, 2, 3),
        params=SamplingParams(max_tokens=num_tokens, grammar=grammar),
        adapter=None if adapter is None else VersionId(adapter),
    )


def run(coroutine):
    async def limited():
        return await asyncio.wait_for(coroutine, timeout=20)

    return asyncio.run(limited())


async def collect(stream):
    return [event.token.token_id async for event in stream]


class Slow:
    """Work that waits until it is let go, and remembers on which threads it ran."""

    def __init__(self, result=None, error=None):
        self.result, self.error = result, error
        self.began, self.may_end = threading.Event(), threading.Event()
        self.threads = []

    def __call__(self, *_arguments):
        self.threads.append(threading.current_thread().name)
        self.began.set()
        assert self.may_end.wait(timeout=20)
        if self.error is not None:
            raise self.error
        return self.result


def parts_with(slow, **options):
    """A core whose adapters are read by `slow`."""
    parts = Parts(versions=HostVersions(1 << 20, fetch=slow), **options)
    parts.core.install(VersionId("a"))
    return parts


async def until(event):
    while not event.is_set():
        await asyncio.sleep(0.001)


def test_others_are_served_while_an_adapter_is_read():
    slow = Slow(low_rank(0))
    parts = parts_with(slow)

    async def main():
        async with parts.engine() as engine:
            wanted, other = make_request(adapter="a"), make_request()
            stream = engine.submit(wanted)
            await until(slow.began)
            assert await collect(engine.submit(other)) == answer_alone(other)
            slow.may_end.set()
            assert await collect(stream) == answer_alone(wanted)
            again = make_request(adapter="a")
            assert await collect(engine.submit(again)) == answer_alone(again)

    run(main())
    assert len(slow.threads) == 1
    assert slow.threads[0].startswith("hyprstream-io")
    parts.core.check_integrity()


def test_others_are_served_while_a_grammar_is_built():
    slow = Slow()
    parts = Parts(check=lambda request: slow() if request.params.grammar else None)

    async def main():
        async with parts.engine() as engine:
            wanted, other = make_request(grammar="a*"), make_request()
            stream = engine.submit(wanted)
            await until(slow.began)
            assert await collect(engine.submit(other)) == answer_alone(other)
            slow.may_end.set()
            assert await collect(stream) == answer_alone(wanted)

    run(main())
    assert slow.threads[0].startswith("hyprstream-io")


def test_many_requests_for_one_version_read_it_once():
    slow = Slow(low_rank(0))
    parts = parts_with(slow)

    async def main():
        async with parts.engine() as engine:
            requests = [make_request(adapter="a") for _ in range(8)]
            streams = [engine.submit(request) for request in requests]
            await until(slow.began)
            slow.may_end.set()
            answers = await asyncio.gather(*map(collect, streams))
            assert answers == [answer_alone(request) for request in requests]

    run(main())
    assert len(slow.threads) == 1


def test_what_a_check_returns_lives_as_long_as_the_request():
    class Token:
        pass

    alive = []

    def check(_request):
        import weakref

        token = Token()
        alive.append(weakref.ref(token))
        return token

    parts = Parts(check=check)
    parts.core.add(make_request(num_tokens=2))
    parts.core.step()
    assert alive[0]() is not None
    parts.core.step()
    assert alive[0]() is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequestError("bad", hint="Mend it."), InvalidRequestError),
        (OSError("the disk is gone"), UnavailableError),
    ],
)
def test_a_preparation_that_fails_fails_its_request_alone(error, expected):
    slow = Slow(error=error)
    slow.may_end.set()
    parts = parts_with(slow)

    async def main():
        async with parts.engine() as engine:
            with pytest.raises(expected):
                await anext(engine.submit(make_request(adapter="a")))
            other = make_request()
            assert await collect(engine.submit(other)) == answer_alone(other)
            assert engine.failure is None
            assert engine.num_requests == 0

    run(main())
    parts.core.check_integrity()


def test_a_request_that_is_aborted_in_preparation_never_starts():
    slow = Slow(low_rank(0))
    parts = parts_with(slow)

    async def main():
        async with parts.engine() as engine:
            stream = engine.submit(make_request(adapter="a"))
            await until(slow.began)
            engine.abort(stream._request_id)
            assert await collect(stream) == []
            assert engine.num_requests == 0
            slow.may_end.set()
            other = make_request()
            assert await collect(engine.submit(other)) == answer_alone(other)

    run(main())
    assert parts.core.open_requests == []


def test_a_version_that_is_retired_while_it_is_read_is_refused():
    slow = Slow(low_rank(0))
    parts = parts_with(slow)

    async def main():
        async with parts.engine() as engine:
            stream = engine.submit(make_request(adapter="a"))
            await until(slow.began)
            await engine.retire(VersionId("a"))
            slow.may_end.set()
            with pytest.raises(VersionNotFoundError):
                await anext(stream)

    run(main())
    assert parts.versions.size_bytes == 0


@pytest.mark.parametrize("drain", [False, True])
def test_stopping_while_something_is_prepared(drain):
    slow = Slow(low_rank(0))
    parts = parts_with(slow)

    async def main():
        engine = parts.engine()
        engine.start()
        request = make_request(adapter="a")
        stream = engine.submit(request)
        await until(slow.began)
        stopping = asyncio.create_task(engine.stop(drain=drain))
        await asyncio.sleep(0.05)
        assert stopping.done() is not drain
        slow.may_end.set()
        await stopping
        if drain:
            assert await collect(stream) == answer_alone(request)
        else:
            with pytest.raises(EngineStoppedError):
                await anext(stream)

    run(main())


def test_a_sum_is_added_up_while_others_are_served():
    slow = Slow(low_rank(0))
    parts = parts_with(slow)

    async def main():
        async with parts.engine() as engine:
            composing = asyncio.create_task(engine.compose([(VersionId("a"), 0.5)]))
            await until(slow.began)
            other = make_request()
            assert await collect(engine.submit(other)) == answer_alone(other)
            slow.may_end.set()
            version = await composing
            wanted = make_request(adapter=version)
            assert await collect(engine.submit(wanted)) == answer_alone(wanted)
            assert await engine.compose([(VersionId("a"), 0.5)]) == version

    run(main())
    assert len(slow.threads) == 1
    assert slow.threads[0].startswith("hyprstream-io")


class ByHand(Executor):
    """Runs what it was given when it is told to, in any order."""

    def __init__(self):
        self.calls = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[explicit-override]
        self.calls.append(lambda: fn(*args, **kwargs))
        return Future()


class AnyOrder(RuleBasedStateMachine):
    """Requests come and go while work is done and delivered in any order."""

    @initialize(fails=st.sets(st.sampled_from("abc")), max_running=st.integers(1, 3))
    def begin(self, fails, max_running):
        def check(request):
            grammar = request.params.grammar
            if grammar is not None and grammar.text in fails:
                raise InvalidRequestError("no", hint="Do not.")

        self.versions = HostVersions(1 << 20, fetch=lambda _version: low_rank(0))
        self.parts = Parts(versions=self.versions, check=check)
        for name in "xy":
            self.parts.core.install(VersionId(name))
        self.sent: list[RequestId] = []
        self.done: list[RequestId] = []
        self.posted: list[Callable[[], None]] = []
        self.executor, self.max_running = ByHand(), max_running
        self.preparations = Preparations(
            self.parts.core,
            self.executor,
            max_running=max_running,
            admit=self.admit,
            refuse=lambda request, _error: self.done.append(request.id),
            post=self.posted.append,
        )

    def admit(self, request, prepared):
        needs_reading = (
            request.adapter is not None and request.adapter not in self.versions._weights
        )
        assert prepared is not None or not (needs_reading or request.params.grammar)
        assert not needs_reading or prepared.weights is not None
        self.parts.core.add(request, prepared)
        self.done.append(request.id)

    @rule(grammar=st.sampled_from([None, *"abc"]), adapter=st.sampled_from([None, *"xy"]))
    def add(self, grammar, adapter):
        request = make_request(grammar=grammar, adapter=adapter)
        self.sent.append(request.id)
        self.preparations.add(request)

    @precondition(lambda self: self.executor.calls)
    @rule(which=st.integers(0, 2))
    def work(self, which):
        self.executor.calls.pop(which % len(self.executor.calls))()

    @precondition(lambda self: self.posted)
    @rule()
    def deliver(self):
        self.posted.pop(0)()

    @precondition(lambda self: self.preparations)
    @rule(which=st.integers(0, 20))
    def drop(self, which):
        waiting = [name for name in self.sent if name in self.preparations]
        self.done.append(waiting[which % len(waiting)])
        self.preparations.drop(self.done[-1])

    @invariant()
    def bounded(self):
        assert len(self.executor.calls) + len(self.posted) <= self.max_running

    def teardown(self):  # type: ignore[explicit-override]  # typing.override is Python 3.12
        while self.executor.calls or self.posted:
            ready = self.posted or self.executor.calls
            ready.pop(0)()
        assert len(self.preparations) == 0
        assert sorted(self.done) == sorted(self.sent)
        self.parts.core.abort_all()
        self.parts.core.check_integrity()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
