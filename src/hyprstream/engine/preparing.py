"""What requests need before they can start, made ready on other threads.

A grammar takes a tenth of a second to build and an adapter as long to be read from disk:
the engine thread would serve nobody meanwhile. Requests that need nothing pass by.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from hyprstream.engine.core import EngineCore, Preparation, Prepared
from hyprstream.engine.request import Request
from hyprstream.errors import HyprstreamError, UnavailableError
from hyprstream.refs import RequestId

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a preparation: one of the two."""

    prepared: Prepared | None = None
    error: HyprstreamError | None = None


class Preparations:
    """Requests that wait for their preparation, and those that are being prepared.

    No two preparations with a key in common run at a time: the second finds what the first
    has made. At most `max_running` results exist at a time besides those that are in use.
    Touched on the engine thread alone; only the work itself runs on others.

    Invariants, checked by `test_preparing.py`: each request that is not dropped is admitted
    or refused once; nothing is admitted before what it needs is there.
    """

    def __init__(
        self,
        core: EngineCore,
        executor: Executor,
        *,
        max_running: int,
        admit: Callable[[Request, Prepared | None], None],
        refuse: Callable[[Request, HyprstreamError], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """Start empty.

        Args:
            core: Knows what a request needs.
            executor: Does the work.
            max_running: How much of it at a time.
            admit: Takes a request in, with what was prepared for it.
            refuse: Is told that a preparation has failed.
            post: Calls a function on the engine thread.
        """
        self._core = core
        self._executor = executor
        self._max_running = max_running
        self._admit = admit
        self._refuse = refuse
        self._post = post
        self._waiting: dict[RequestId, Request] = {}  # in order of arrival
        self._running: list[Preparation] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._waiting

    def add(self, request: Request) -> None:
        """Admit a request when what it needs is there, which may be at once."""
        self._waiting[request.id] = request
        self._advance()

    def drop(self, request_id: RequestId) -> None:
        """Forget a request; work that has begun for it goes on, and comes to nothing."""
        del self._waiting[request_id]

    def _advance(self) -> None:
        """Admit what needs nothing any more, and begin as much work as may run."""
        for request in tuple(self._waiting.values()):
            preparation = self._core.preparation(request)
            if preparation is None:
                del self._waiting[request.id]
                self._admit(request, None)
            elif len(self._running) < self._max_running and not any(
                preparation.keys & other.keys for other in self._running
            ):
                self._running.append(preparation)
                self._executor.submit(self._work, request, preparation)

    def _work(self, request: Request, preparation: Preparation) -> None:
        """Prepare; on a thread of the executor."""
        try:
            outcome = _Outcome(prepared=preparation.run())
        except HyprstreamError as error:
            outcome = _Outcome(error=error)
        except Exception as error:
            # It has touched nothing that others use: the engine can go on without it.
            log.exception("request %s could not be prepared", request.id)
            outcome = _Outcome(error=_unavailable(error))
        self._post(lambda: self._finish(request, preparation, outcome))

    def _finish(self, request: Request, preparation: Preparation, outcome: _Outcome) -> None:
        self._running.remove(preparation)
        # It may have been dropped, and another of its name have come.
        if self._waiting.get(request.id) is request:
            del self._waiting[request.id]
            if outcome.error is None:
                self._admit(request, outcome.prepared)
            else:
                self._refuse(request, outcome.error)
        self._advance()


def _unavailable(cause: Exception) -> UnavailableError:
    error = UnavailableError(
        f"the request could not be prepared: {type(cause).__name__}: {cause}",
        hint="Try again; the log shows where it failed.",
    )
    error.__cause__ = cause
    return error
