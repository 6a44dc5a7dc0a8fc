"""From the engine thread to the streams of requests. Belongs to the event loop."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from hyprstream.engine.plan import SequenceEvent
from hyprstream.engine.stream import Abort, TokenStream
from hyprstream.errors import EngineStoppedError, InvalidRequestError, QueueFullError
from hyprstream.refs import RequestId


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step, or one command, has to tell the event loop.

    Attributes:
        events: In order for each sequence.
        over: Requests with which the engine thread is through.
        started: Requests of which the step was the first.
        at_ns: When it began, in nanoseconds since 1970.
    """

    events: Sequence[SequenceEvent] = ()
    over: Sequence[RequestId] = ()
    started: Sequence[RequestId] = ()
    at_ns: int = 0


@dataclass(slots=True)
class _Place:
    """What the event loop knows of a request until the engine thread is through with it.

    The stream is held weakly, so that one that nobody reads any more aborts its request.
    """

    stream: weakref.ref[TokenStream]
    is_waiting: bool = True
    """It has shown no event yet."""


class Deliveries:
    """The requests that hold something, and their streams.

    Args:
        max_waiting: How many requests may be there that have shown no event yet.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._places: dict[RequestId, _Place] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return len(self._places)

    def open(self, request_id: RequestId, abort: Abort) -> TokenStream:
        """Make the stream of a request.

        Raises:
            QueueFullError: As many requests wait as may.
            InvalidRequestError: A request of this id is not over.
        """
        if self._num_waiting >= self._max_waiting:
            raise QueueFullError(max_waiting=self._max_waiting)
        if request_id in self._places:
            raise InvalidRequestError(
                f"a request of id {request_id} is not over", hint="Give each request its own id."
            )
        stream = TokenStream(request_id, abort)
        self._places[request_id] = _Place(weakref.ref(stream))
        self._num_waiting += 1
        return stream

    def deliver(self, batch: Batch) -> None:
        """Hand events to their streams."""
        for request_id in batch.started:
            stream = self._places[request_id].stream()
            if stream is not None:
                stream.times.started_ns = batch.at_ns
        for event in batch.events:
            place = self._places[event.sequence_id.request_id]
            self._count_waiting(place)
            stream = place.stream()
            if stream is not None:
                stream.put(event)
        for request_id in batch.over:
            place = self._places.pop(request_id)
            self._count_waiting(place)
            stream = place.stream()
            if stream is not None:
                stream.end()

    def end(self, stopped: EngineStoppedError) -> None:
        """Fail all streams: nothing will come any more."""
        for place in self._places.values():
            stream = place.stream()
            if stream is not None:
                stream.end(again(stopped))
        self._places.clear()
        self._num_waiting = 0

    def _count_waiting(self, place: _Place) -> None:
        if place.is_waiting:
            place.is_waiting = False
            self._num_waiting -= 1


def again(stopped: EngineStoppedError) -> EngineStoppedError:
    """Make a fresh copy to raise: a raised exception collects tracebacks."""
    copy = EngineStoppedError(str(stopped), hint=stopped.hint)
    copy.__cause__ = stopped.__cause__
    return copy
