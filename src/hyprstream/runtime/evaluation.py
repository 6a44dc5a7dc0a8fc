"""Measurements that callers ask for, in slices between the steps of the engine.

They take turns with learning, within the same share of the time: nothing that is served waits
for longer than one slice of either.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from hyprstream.engine.background import BackgroundWork
from hyprstream.errors import EngineStoppedError, HyprstreamError, QueueFullError
from hyprstream.runtime.adapted import LoadedAdapter
from hyprstream.runtime.training_records import Evaluated
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Pieces = Generator[None, None, Result]

_BATCH_TOKENS = 256  # measured at a time, as by the loop: no longer slices than those of learning

_LOOK_S = 1.0  # between looks at whether an engine that is waited for still runs

MAX_WAITING = 8
"""Most measurements that wait or go on at a time."""


@dataclass(frozen=True, slots=True)
class _Job:
    pieces: Pieces[None]
    over: "Future[None]"


class Evaluations:
    """Measurements, one after the other, beside other background work.

    `submit` may be called from any thread; the rest belongs to the engine thread. What was
    cancelled ends with the next slice.

    Args:
        beside: What else is done between steps; None: nothing.
        max_waiting: Most of them that wait or go on at a time.
    """

    def __init__(self, beside: BackgroundWork | None, *, max_waiting: int = MAX_WAITING) -> None:
        self._beside = beside
        self._max_waiting = max_waiting
        self._jobs: deque[_Job] = deque()
        self._is_their_turn = True

    def submit(self, pieces: Pieces[Result]) -> "Future[Result]":
        """Do work in pieces, when its turn comes.

        Raises:
            QueueFullError: Too many wait.
        """
        if len(self._jobs) >= self._max_waiting:
            raise QueueFullError(max_waiting=self._max_waiting)
        future: Future[Result] = Future()

        def run() -> Pieces[None]:
            result = yield from pieces
            if future.set_running_or_notify_cancel():
                future.set_result(result)

        self._jobs.append(_Job(run(), future))  # type: ignore[arg-type]  # only cancelled and failed
        return future

    async def result(
        self, pieces: Pieces[Result], failure: Callable[[], EngineStoppedError | None]
    ) -> Result:
        """Do work in pieces and wait for what comes of it; who is cancelled ends the work too.

        Args:
            pieces: The work.
            failure: Tells why the engine does not run any more; None while it does.

        Raises:
            QueueFullError: Too many wait.
            EngineStoppedError: The engine ended before the work did.
        """
        waiting = asyncio.wrap_future(self.submit(pieces))
        try:
            while not waiting.done():
                await asyncio.wait([waiting], timeout=_LOOK_S)
                why = failure()
                if why is not None and not waiting.done():
                    raise EngineStoppedError(str(why), hint=why.hint)
        finally:
            waiting.cancel()
        return waiting.result()

    def ready(self) -> bool:
        """Tell whether there is a slice to run."""
        return bool(self._jobs) or (self._beside is not None and self._beside.ready())

    def run_slice(self) -> None:
        """Do one piece of a measurement, or one slice of the other work: in turns."""
        beside = self._beside
        waits = beside is not None and beside.ready()
        self._is_their_turn = not self._is_their_turn
        if beside is not None and waits and (self._is_their_turn or not self._jobs):
            beside.run_slice()
        elif self._jobs:
            self._run(self._jobs[0])

    def close(self) -> None:
        """Give up what is not done; after the engine has stopped."""
        while self._jobs:
            job = self._jobs.popleft()
            job.pieces.close()
            job.over.cancel()

    def _run(self, job: _Job) -> None:
        try:
            if not job.over.cancelled():
                next(job.pieces)
                return
            job.pieces.close()
        except StopIteration:
            pass
        except Exception as error:
            # Whatever it is, the caller is told: nobody else's requests shall end with it.
            if not isinstance(error, HyprstreamError):
                log.exception("a measurement has failed")
            if job.over.set_running_or_notify_cancel():
                job.over.set_exception(error)
        self._jobs.popleft()


def measuring(
    trainer: Trainer, loaded: LoadedAdapter, samples: Sequence[Sample]
) -> Pieces[Evaluated]:
    """Measure a version and its base model on samples, in pieces."""
    longest = max(_BATCH_TOKENS, *(len(sample.token_ids) for sample in samples))
    found = []
    for weights in (loaded.weights, None):
        scoring = trainer.begin_scoring(weights, samples, batch_tokens=longest)
        while not scoring.advance():
            yield
        yield
        found.append(scoring.result())
    ours, base = found
    return Evaluated(
        version=loaded.version,
        adapter=Evaluation.of(ours),
        base=Evaluation.of(base),
        num_better=sum(a.loss < b.loss for a, b in zip(ours, base, strict=True)),
    )
