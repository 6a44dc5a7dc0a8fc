"""One step of the engine, and what has to hold around it. Synchronous; on the engine thread.

Scripts that need no event loop use a core directly, through `run_all`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hyprstream.engine.plan import Runner, SequenceEvent
from hyprstream.engine.request import Request
from hyprstream.engine.scheduler import Scheduler
from hyprstream.engine.stats import EngineStats
from hyprstream.engine.versions import HostVersions
from hyprstream.errors import QueueFullError
from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import RequestId, VersionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was made ready for a request.

    Attributes:
        kept: What the check has built, alive for as long as this is.
        weights: Those of its adapter version, if they were not on the host.
    """

    kept: object = None
    weights: LoraWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Work that a request needs before it can be added without delay.

    Attributes:
        keys: Names what it makes.
        run: Does it, on any thread.

    `run` raises what `EngineCore.add` would.
    """

    keys: frozenset[object]
    run: Callable[[], Prepared]


class EngineCore:
    """Serves requests step by step; joins the scheduler, the runner and the versions.

    A request pins its adapter version when it is added and unpins it when its last answer
    ends, so that a version is there, unchanged, for as long as a request uses it.

    Invariant, checked by `test_core.py`: versions are pinned by open requests and by nothing
    else.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        versions: HostVersions,
        *,
        check: Callable[[Request], object] = lambda _request: None,
    ) -> None:
        """Join the parts.

        Args:
            scheduler: Decides what a step computes.
            runner: Computes it.
            versions: The installed adapter versions; the runner reads the same.
            check: Raises for a request that the runner could not start; a request that fails
                in the middle of a step would take the engine with it. May be called on any
                thread. What it returns stays alive until the request is over.
        """
        self._scheduler = scheduler
        self._runner = runner
        self._versions = versions
        self._check = check
        self._open: dict[RequestId, Request] = {}
        self._kept: dict[RequestId, object] = {}
        self._num_running: dict[RequestId, int] = {}
        self._started: tuple[RequestId, ...] = ()

    @property
    def has_work(self) -> bool:
        """Tell whether a step would do anything."""
        return self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        """What goes on between two steps."""
        return self._scheduler.stats(self._versions.size_bytes)

    @property
    def started(self) -> tuple[RequestId, ...]:
        """Requests of which the last step was the first."""
        return self._started

    @property
    def open_requests(self) -> list[RequestId]:
        """Requests that are not over."""
        return list(self._open)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._open

    def preparation(self, request: Request) -> Preparation | None:
        """Return the slow part of adding a request; None if there is none.

        Building a grammar is slow, and so is reading an adapter that is not on the host.
        """
        grammar, version, check = request.params.grammar, request.adapter, self._check
        read = None if version is None else self._versions.reader(version)
        if grammar is None and read is None:
            return None

        def run() -> Prepared:
            kept = check(request)
            return Prepared(kept=kept, weights=None if read is None else read())

        keys = {grammar, None if read is None else version} - {None}
        return Preparation(keys=frozenset(keys), run=run)

    def add(self, request: Request, prepared: Prepared | None = None) -> None:
        """Take a request in; its first event comes with a later step.

        Args:
            request: The request.
            prepared: What its `preparation` made; what is missing is made here.

        Raises:
            VersionNotFoundError: Its adapter version is not installed.
            AdapterMemoryFullError: The versions in use leave no room for its version.
            InvalidRequestError: It names a token that the model does not have.
            ContextTooLongError: The prompt leaves no room for a token.
            QueueFullError: As many requests wait as may.
        """
        assert request.id not in self._open, f"{request.id} is not over"
        if prepared is None:
            prepared = Prepared(kept=self._check(request))
        self._versions.pin(request.adapter, prepared.weights)
        try:
            self._scheduler.add(request)
        except BaseException:
            self._versions.unpin(request.adapter)
            raise
        self._open[request.id] = request
        self._kept[request.id] = prepared.kept
        self._num_running[request.id] = 1 if request.embeds else request.num_answers

    def abort(self, request_id: RequestId, answer: int | None = None) -> None:
        """End a request, or one of its answers; it yields no further event."""
        num_ended = self._scheduler.abort(request_id, index=answer)
        self._num_running[request_id] -= num_ended
        if answer is None or not self._num_running[request_id]:
            self._close(request_id)

    def abort_all(self) -> None:
        """End every request."""
        for request_id in self.open_requests:
            self.abort(request_id)

    def step(self) -> list[SequenceEvent]:
        """Compute one step and return what came of it."""
        plan = self._scheduler.schedule()
        self._started = tuple(
            start.sequence_id.request_id for start in plan.starts if not start.sequence_id.answer
        )
        sampled = self._runner.run(plan)
        return self._account(self._scheduler.update(plan, sampled))

    def install(self, version: VersionId, weights: LoraWeights | None = None) -> None:
        """Let requests use a version: see `HostVersions.install`."""
        self._versions.install(version, weights)

    def sum_reader(
        self, parts: Sequence[tuple[VersionId, float]]
    ) -> Callable[[], LoraWeights] | None:
        """Return the slow part of `compose`: see `HostVersions.sum_reader`."""
        return self._versions.sum_reader(parts)

    def compose(
        self, parts: Sequence[tuple[VersionId, float]], weights: LoraWeights | None = None
    ) -> VersionId:
        """Install a weighted sum of versions: see `HostVersions.compose`."""
        return self._versions.compose(parts, weights)

    def retire(self, version: VersionId) -> None:
        """Refuse a version to new requests: see `HostVersions.retire`."""
        self._versions.retire(version)
        self._scheduler.forget(version)

    def check_integrity(self) -> None:
        """Assert every invariant that can be looked at between two steps."""
        self._scheduler.check_integrity()
        used = {request.adapter for request in self._open.values()} - {None}
        assert self._versions.num_pinned == len(used), "a pin without a request, or the reverse"
        assert self._open.keys() == self._num_running.keys() == self._kept.keys()

    def _account(self, events: list[SequenceEvent]) -> list[SequenceEvent]:
        for event in events:
            if event.is_last:
                request_id = event.sequence_id.request_id
                self._num_running[request_id] -= 1
                if self._num_running[request_id] == 0:
                    self._close(request_id)
        return events

    def _close(self, request_id: RequestId) -> None:
        del self._num_running[request_id], self._kept[request_id]
        version = self._open.pop(request_id).adapter
        self._versions.unpin(version)
        if version is not None and version not in self._versions:  # retired meanwhile
            self._scheduler.forget(version)


def run_all(core: EngineCore, requests: Iterable[Request]) -> dict[RequestId, list[SequenceEvent]]:
    """Serve requests to their end, together, and return the events of each.

    As many are taken in at a time as the queue takes. A request that fails in the middle
    ends with an event that carries its error.

    Raises:
        HyprstreamError: A request is refused; those before it are aborted.
    """
    results: dict[RequestId, list[SequenceEvent]] = {}

    def step() -> None:
        for event in core.step():
            results[event.sequence_id.request_id].append(event)

    try:
        for request in requests:
            results[request.id] = []
            while True:
                try:
                    core.add(request)
                    break
                except QueueFullError:
                    step()
        while core.has_work:
            step()
    except BaseException:
        core.abort_all()
        raise
    return results
