"""What happens while a runtime serves, for whoever looks on: learning, decisions, moves of names.

Events are kept in rings of bounded length, one for each kind, so that the many steps of a
training push no decision out. Those who look on hold a number, not a queue: one that is too
slow misses events and is told so, and costs nothing. No torch.
"""

import asyncio
import math
import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from hyprstream.errors import HyprstreamError
from hyprstream.refs import AdapterName
from hyprstream.runtime.journal_rows import Action, Decision
from hyprstream.runtime.learners import DecisionLog, LessonProgress
from hyprstream.store.records import Move
from hyprstream.train.buffer import Fate

Kind = Literal["progress", "decision", "move", "reset"]
"""A step of learning; what was decided; a name that points elsewhere; and that what was seen
before does not lead on to what comes now."""

MOST: Mapping[Kind, int] = {"progress": 2048, "decision": 256, "move": 256}
"""How many events of a kind are kept."""

MovesAfter = Callable[[datetime, int], Awaitable[Sequence[tuple[AdapterName, Move]]]]

_LOOK_S = 0.5  # how often names are looked at while somebody looks on
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        number: Its place among all; 0 for `reset`.
        kind: What it is about.
        at: When, in seconds since 1970.
        adapter: Whom it is about; None for `reset`.
        data: The rest, fit for JSON.
    """

    number: int
    kind: Kind
    at: float
    adapter: AdapterName | None
    data: Mapping[str, Any]


class Events:
    """The events of one runtime.

    Whoever learns may tell of it from any thread. Moves of names are looked for in the store
    while somebody follows, since other processes move names too.

    Args:
        moves_after: Lists the moves of names after a moment, at most so many of the latest.
        clock: Seconds since 1970.
    """

    def __init__(self, moves_after: MovesAfter, *, clock: Callable[[], float]) -> None:
        self.epoch = secrets.token_hex(4)
        """Tells the numbers of this process from those of others."""
        self._moves_after = moves_after
        self._clock = clock
        self._lock = threading.Lock()
        self._rings: dict[Kind, deque[Event]] = {kind: deque() for kind in MOST}
        self._number = 0
        self._lost = 0  # the highest number that is not kept any more
        # On the event loop.
        self.loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._is_closed = False
        self._num_followers = 0
        self._looking: asyncio.Task[None] | None = None
        self._seen = _LONG_AGO  # the time of the last move that was told of

    def tell(self, told: LessonProgress | Decision) -> None:
        """Tell how far the making of a version is, or of a decision; from any thread."""
        if isinstance(told, Decision):
            self._decided(told)
        else:
            data = asdict(told)
            del data["adapter"]
            self._add("progress", told.adapter, self._clock(), data)

    def close(self) -> None:
        """Let everybody who follows come to an end; on the event loop."""
        self._is_closed = True
        self._wake()

    def _decided(self, decision: Decision) -> None:
        data = {
            "action": decision.action,
            "parent": decision.parent,
            "version": decision.version,
            "reasons": list(decision.reasons),
            "numbers": dict(decision.numbers),
            "num_samples": len(decision.samples),
        }
        self._add("decision", decision.adapter, decision.at or self._clock(), data)

    async def follow(
        self, after: int | None = None, *, seconds: float = math.inf
    ) -> AsyncGenerator[Event, None]:
        """Give what is kept and what happens from now on, in order, until `close`.

        Args:
            after: The number of the event that was seen last; None has seen none.
            seconds: How long at the most.
        """
        until = self.loop.time() + seconds
        self._num_followers += 1
        try:
            await self._look()
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._keep_looking())
            async with aclosing(self._follow(after, until)) as followed:
                async for event in followed:
                    yield event
        finally:
            self._num_followers -= 1
            if not self._num_followers and self._looking is not None:
                self._looking.cancel()
                with suppress(asyncio.CancelledError):
                    await self._looking

    async def _follow(self, after: int | None, until: float) -> AsyncGenerator[Event, None]:
        seen = 0 if after is None else after
        if seen > self._number:  # of another process
            seen = -1
        is_new = after is None
        while not self._is_closed and self.loop.time() < until:
            news = self._news
            found, lost = self._after(seen)
            if seen < lost and not is_new:
                yield Event(number=0, kind="reset", at=self._clock(), adapter=None, data={})
                found, _ = self._after(0)
            is_new = False
            for event in found:
                yield event
            seen = max([lost, seen, *(event.number for event in found)])
            if not found:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(None if math.isinf(until) else until):
                        await news.wait()

    def _after(self, number: int) -> tuple[list[Event], int]:
        with self._lock:
            kept = [e for ring in self._rings.values() for e in ring if e.number > number]
            return sorted(kept, key=lambda event: event.number), self._lost

    def _add(self, kind: Kind, adapter: AdapterName, at: float, data: Mapping[str, Any]) -> None:
        with self._lock:
            self._number += 1
            ring = self._rings[kind]
            ring.append(Event(number=self._number, kind=kind, at=at, adapter=adapter, data=data))
            if len(ring) > MOST[kind]:
                self._lost = max(self._lost, ring.popleft().number)
        with suppress(RuntimeError):  # the loop is closed: nobody follows
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """Take note of moves that are new."""
        with suppress(HyprstreamError):  # the store is busy or full; the next look tells
            since = self._seen
            for name, move in await self._moves_after(since, MOST["move"]):
                if move.at > self._seen:  # nobody else has looked meanwhile
                    self._seen = move.at
                    data = {
                        "action": move.action,
                        "version": move.version,
                        "by": move.note.by,
                        "why": move.note.why,
                    }
                    self._add("move", name, move.at.timestamp(), data)


class ToldDecisions:
    """A journal that tells of each decision when it is final.

    Args:
        journal: Keeps them.
        tell: Told, on the thread that decides.
    """

    def __init__(self, journal: DecisionLog, tell: Callable[[Decision], None]) -> None:
        self._journal = journal
        self._tell = tell
        self._open: dict[int, Decision] = {}

    def decide(self, decision: Decision, fate: Fate | None = None) -> int:
        """Keep a decision; see `Journal.decide`."""
        number = self._journal.decide(decision, fate)
        if decision.action == "publishing":
            self._open[number] = decision
        else:
            self._tell(decision)
        return number

    def resolve(self, number: int, action: Action, fate: Fate | None = None) -> None:
        """Say how a publication ended; see `Journal.resolve`."""
        self._journal.resolve(number, action, fate)
        self._tell(replace(self._open.pop(number), action=action))
