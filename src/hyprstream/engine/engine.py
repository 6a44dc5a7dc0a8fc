"""The front of the engine: many asyncio callers, one thread that owns the accelerator.

Callers put commands in the inbox and read token streams; the engine thread takes commands
between steps, steps, and hands the events of each step to the event loop in one piece. The
two sides share nothing else: the core is touched on the engine thread alone, streams on the
event loop alone. What would hold up the engine thread runs on two threads more: grammars
are built there, adapters read and added up.
"""

import asyncio
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from hyprstream.engine.background import BackgroundWork, TimeShare
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import EngineCore, Prepared
from hyprstream.engine.delivery import Batch, Deliveries, again
from hyprstream.engine.plan import SequenceEvent, SequenceId
from hyprstream.engine.preparing import Preparations
from hyprstream.engine.request import Request
from hyprstream.engine.stats import EngineStats
from hyprstream.engine.stream import TokenStream
from hyprstream.engine.token_meter import TokenMeter
from hyprstream.errors import (
    EngineStoppedError,
    HyprstreamError,
)
from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import RequestId, VersionId

log = logging.getLogger(__name__)

_NUM_IO_THREADS = 2
_IDLE_POLL_S = 0.02  # how soon an idle engine notices that background work became ready

Result = TypeVar("Result")


class Engine:
    """The thread-safe front of one `EngineCore`: requests in, token streams out.

    Start it on the event loop whose tasks are to use it, with `async with` or `start` and
    `stop`. All methods but `abort` belong to that loop. An engine that has failed or was
    stopped refuses everything with `EngineStoppedError` and cannot be started again.

    Attributes:
        tokens: Counts the tokens of all answers; for any thread.

    Invariants, checked by `test_engine.py`: no call and no stream waits for an engine that
    has ended; a request that nobody reads holds no blocks, slots or pins.

    Example:
        >>> async with Engine(core, config) as engine:
        ...     async with engine.submit(request) as stream:
        ...         async for event in stream:
        ...             ...
    """

    def __init__(
        self,
        core: EngineCore,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take over a core.

        Args:
            core: The core; nobody else may touch it from now on.
            config: Its limits.
            clock: Measures steps and background slices, in seconds.
        """
        self._core = core
        self._clock = clock
        self._share = TimeShare(
            config.background_share,
            burst_s=config.background_burst_s,
            burst_every=config.background_every,
        )
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Touched on the event loop only.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliveries = Deliveries(config.max_waiting)
        self._calls: set[asyncio.Future[None]] = set()
        self._stopped: EngineStoppedError | None = EngineStoppedError(
            "the engine has not been started", hint="Start it before it is used."
        )
        self._has_ended = asyncio.Event()
        self._io = ThreadPoolExecutor(_NUM_IO_THREADS, thread_name_prefix="hyprstream-io")
        # Written on the engine thread, read on any.
        self.tokens = TokenMeter()
        # Touched on the engine thread only.
        self._preparations = Preparations(
            core,
            self._io,
            max_running=_NUM_IO_THREADS,
            admit=self._admit,
            refuse=self._refuse,
            post=self._inbox.put,
        )
        self._background: BackgroundWork | None = None
        self._runs = True
        self._drains = False

    def start(self, background: BackgroundWork | None = None) -> None:
        """Start the engine thread; its events go to the running event loop.

        Args:
            background: What to do between steps, within `EngineConfig.background_share` of
                the time while requests wait, and without limit while none does.
        """
        assert self._loop is None, "an engine is started once"
        self._loop = asyncio.get_running_loop()
        self._stopped = None
        self._background = background
        # A daemon: a program that forgets to stop the engine still exits.
        threading.Thread(target=self._serve, name="hyprstream-engine", daemon=True).start()

    async def stop(self, *, drain: bool = False) -> None:
        """End the engine thread and wait for its end. Stopping twice is one stop.

        Args:
            drain: Finish the requests that are there; otherwise their streams fail.
        """
        if self._loop is None:
            return
        if self._stopped is None:
            self._stopped = EngineStoppedError("the engine was stopped", hint="Start a new one.")
            self._inbox.put(functools.partial(self._wind_down, drain=drain))
        await self._has_ended.wait()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def failure(self) -> EngineStoppedError | None:
        """Why the engine takes no requests; None while it does."""
        return self._stopped

    @property
    def num_requests(self) -> int:
        """Requests that hold something: waiting, running or being aborted."""
        return len(self._deliveries)

    def submit(self, request: Request) -> TokenStream:
        """Put a request in the queue.

        What only the engine thread can tell, such as a version that is not installed or a
        prompt that is too long, is raised by the stream.

        Raises:
            EngineStoppedError: The engine does not run (any more).
            QueueFullError: As many requests wait as may.
            InvalidRequestError: A request of this id is not over.
        """
        self._check_runs()
        stream = self._deliveries.open(request.id, self.abort)
        self._inbox.put(functools.partial(self._preparations.add, request))
        return stream

    def abort(self, request_id: RequestId, answer: int | None = None) -> None:
        """End a request and its stream; one that is over or unknown is left alone.

        May be called from any thread.

        Args:
            request_id: The request.
            answer: End only this one of its answers; the stream ends with the last of them.
        """
        self._inbox.put(functools.partial(self._abort, request_id, answer))

    async def install(self, version: VersionId, weights: LoraWeights | None = None) -> None:
        """Let requests use a version: see `HostVersions.install`.

        Raises:
            EngineStoppedError: The engine does not run.
            AdapterMemoryFullError: There is no room for the weights.
        """
        await self._call(lambda: self._core.install(version, weights))

    async def compose(self, parts: Sequence[tuple[VersionId, float]]) -> VersionId:
        """Install a weighted sum of versions, for requests to name: see `HostVersions.compose`.

        Raises:
            EngineStoppedError: The engine does not run.
            InvalidRequestError: The parts are no composition.
            VersionNotFoundError: A part is not installed.
            AdapterMemoryFullError: There is no room for the sum.
        """
        read = await self._call(lambda: self._core.sum_reader(parts))
        weights = None
        if read is not None:
            weights = await asyncio.get_running_loop().run_in_executor(self._io, read)
        return await self._call(lambda: self._core.compose(parts, weights))

    async def stats(self) -> EngineStats:
        """Tell what the engine is doing, between two steps.

        Raises:
            EngineStoppedError: It does not run.
        """
        return await self._call(lambda: self._core.stats)

    async def retire(self, version: VersionId) -> None:
        """Refuse a version to new requests; those that use it finish with it.

        Raises:
            EngineStoppedError: The engine does not run.
            VersionNotFoundError: It is not installed.
        """
        await self._call(lambda: self._core.retire(version))

    # On the event loop ---------------------------------------------------------------

    def _check_runs(self) -> None:
        if self._stopped is not None:
            raise again(self._stopped)

    async def _call(self, work: Callable[[], Result]) -> Result:
        """Do `work` on the engine thread, between steps, and return what it returned."""
        self._check_runs()
        results: list[Result] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def run() -> None:
            error: HyprstreamError | None = None
            try:
                results.append(work())
            except HyprstreamError as refused:
                error = refused
            self._post(functools.partial(self._settle, done, error))

        self._calls.add(done)
        self._inbox.put(run)
        await done
        return results[0]

    def _settle(self, done: asyncio.Future[None], error: HyprstreamError | None) -> None:
        self._calls.discard(done)
        if done.done():  # the caller was cancelled
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def _end(self, failure: Exception | None) -> None:
        """Take note that the engine thread has ended; nothing may wait for it any more."""
        if failure is not None:
            self._stopped = EngineStoppedError(
                f"the engine has failed: {type(failure).__name__}: {failure}",
                hint="Restart the server; its log shows where the failure happened.",
            )
            self._stopped.__cause__ = failure
        assert self._stopped is not None, "the thread ends by failure or by stop"
        self._deliveries.end(self._stopped)
        for done in self._calls:
            if not done.done():
                done.set_exception(again(self._stopped))
        self._calls.clear()
        self._has_ended.set()

    # On the engine thread ------------------------------------------------------------

    def _serve(self) -> None:
        failure: Exception | None = None
        try:
            while self._runs:
                self._obey()
                if self._core.has_work:
                    self._step()
                elif self._drains and not self._preparations:
                    self._runs = False
                if self._runs and not self._drains:
                    self._run_background()
            self._core.abort_all()
        except Exception as error:
            # Whatever went wrong, the core cannot be trusted any more: all streams fail.
            log.exception("the engine has failed")
            failure = error
        finally:
            self._io.shutdown(wait=False, cancel_futures=True)
            self._post(functools.partial(self._end, failure))

    def _obey(self) -> None:
        """Carry out all commands that are there; wait for one if there is nothing to do."""
        try:
            if not self._core.has_work and (self._preparations or not self._drains):
                self._wait_for_command()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _wait_for_command(self) -> None:
        background = self._background
        if background is None or self._drains:
            self._inbox.get()()
        elif not background.ready():
            self._inbox.get(timeout=_IDLE_POLL_S)()

    def _step(self) -> None:
        began, now_ns = self._clock(), time.time_ns()
        events = self._core.step()
        self._share.add_step(self._clock() - began)
        over = [
            event.sequence_id.request_id
            for event in events
            if event.is_last and event.sequence_id.request_id not in self._core
        ]
        started = self._core.started
        self.tokens.add(sum(event.token is not None for event in events))
        if events or started:
            self._tell(Batch(events, tuple(dict.fromkeys(over)), started, now_ns))

    def _run_background(self) -> None:
        background = self._background
        if background is None:
            return
        if not self._core.has_work:
            if background.ready():
                background.run_slice()
            return
        while self._share.allows_slice and background.ready():
            began = self._clock()
            background.run_slice()
            self._share.add_slice(self._clock() - began)

    def _admit(self, request: Request, prepared: Prepared | None) -> None:
        try:
            self._core.add(request, prepared)
        except HyprstreamError as error:
            self._refuse(request, error)

    def _refuse(self, request: Request, error: HyprstreamError) -> None:
        event = SequenceEvent(sequence_id=SequenceId(request.id), error=error, is_last=True)
        self._tell(Batch([event], [request.id]))

    def _abort(self, request_id: RequestId, answer: int | None) -> None:
        if request_id in self._preparations:
            if answer is not None:  # nobody has seen anything of it yet
                return
            self._preparations.drop(request_id)
        elif request_id in self._core:
            self._core.abort(request_id, answer)
            if request_id in self._core:
                return
        else:
            return
        self._tell(Batch(over=[request_id]))

    def _wind_down(self, *, drain: bool) -> None:
        self._drains = drain
        self._runs = drain

    def _tell(self, batch: Batch) -> None:
        self._post(functools.partial(self._deliveries.deliver, batch))

    def _post(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None, "the thread is started with a loop"
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop was closed without stopping the engine
            self._runs = False
