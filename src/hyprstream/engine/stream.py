"""The events of one request on their way to its reader. Belongs to the event loop."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hyprstream.engine.plan import SequenceEvent
from hyprstream.errors import HyprstreamError
from hyprstream.refs import RequestId

Abort = Callable[[RequestId, int | None], None]
"""Ends a request, or one of its answers."""


@dataclass(slots=True)
class Times:
    """When a request got how far, in nanoseconds since 1970; 0 where it did not.

    Attributes:
        opened_ns: It was submitted.
        started_ns: Its first step began.
        first_ns: Its first token arrived.
        over_ns: Nothing follows.
    """

    opened_ns: int
    started_ns: int = 0
    first_ns: int = 0
    over_ns: int = 0


class TokenStream:
    """The events of one request, as they come: an async iterator and context manager.

    It ends after the last event of the last answer, or when the request is aborted; it
    raises the error with which the request fails. Leaving the context, `close`, being
    cancelled while waiting and being forgotten all abort the request.

    Attributes:
        times: How far it got, and when.
    """

    __slots__ = (
        "__weakref__",
        "_abort",
        "_events",
        "_failure",
        "_is_over",
        "_reader",
        "_request_id",
        "times",
    )

    def __init__(self, request_id: RequestId, abort: Abort) -> None:
        self.times = Times(time.time_ns())
        self._request_id = request_id
        self._abort = abort
        self._events: deque[SequenceEvent] = deque()
        self._failure: HyprstreamError | None = None
        self._is_over = False
        self._reader: asyncio.Future[None] | None = None  # waits; at a time there is one

    def close(self) -> None:
        """Abort the request if it still runs, and drop what was not read."""
        self._events.clear()
        self._failure = None
        if not self._is_over:
            self._end()
            self._wake()
            self._abort(self._request_id, None)

    def end_answer(self, answer: int) -> None:
        """Abort one of several answers; what is on its way of it still comes."""
        if not self._is_over:
            self._abort(self._request_id, answer)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceEvent:
        """Wait for the next event.

        Raises:
            HyprstreamError: What the request failed with.
        """
        while not self._events and not self._is_over:
            assert self._reader is None or self._reader.done(), "two tasks read one stream"
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                self.close()
                raise
        if self._events:
            event = self._events.popleft()
            if event.error is not None:
                self.close()
                raise event.error
            return event
        failure, self._failure = self._failure, None
        raise failure or StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._is_over:
            self._abort(self._request_id, None)

    def put(self, event: SequenceEvent) -> None:
        """Take one event; called by the engine, on the event loop."""
        if not self._is_over:
            if not self.times.first_ns and event.token is not None:
                self.times.first_ns = time.time_ns()
            self._events.append(event)
            self._wake()

    def end(self, failure: HyprstreamError | None = None) -> None:
        """Take note that nothing follows; called by the engine, on the event loop."""
        if not self._is_over:
            self._end()
            self._failure = failure
            self._wake()

    def _end(self) -> None:
        self._is_over = True
        self.times.over_ns = time.time_ns()

    def _wake(self) -> None:
        # A bare future, since an asyncio.Event for every token costs twice as much.
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)
