"""What callers of Flight do to adapters of a runtime: samples, training, names of versions.

From any thread but that of the event loop, which has to run. Each call looks first whether the
caller may.
"""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hyprstream.errors import (
    AdapterNotFoundError,
    ConflictError,
    InvalidRequestError,
    SqlNotAllowedError,
)
from hyprstream.refs import AdapterName, AdapterRef, VersionId, adapter_name
from hyprstream.runtime.adapted import Recipe, create_adapter
from hyprstream.runtime.adapter_records import AdapterInfo
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.kept_samples import read_lines
from hyprstream.runtime.learning_report import LearningStatus, learning_status
from hyprstream.runtime.live_learning import LiveLearning
from hyprstream.runtime.policy import LearningPolicy
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.training_data import maker_of
from hyprstream.runtime.warehouse.warehouse import Caller
from hyprstream.store.records import Collected, Note
from hyprstream.train.buffer import Added, Owner

MAX_ROWS = 10_000
"""Most samples at once."""
_NESTED = ("messages", "conversations", "tools")  # in columns of text they are JSON
_AT_A_TIME = 32  # rows: others who learn come in between

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of samples that were sent.

    Attributes:
        source: Under which name the journal has them.
        rows: Records that were sent.
        counts: How many samples wait, are held out, are duplicates, found no room, are too long.
    """

    source: str
    rows: int
    counts: Mapping[Added, int]

    @property
    def num_kept(self) -> int:
        """Samples that were kept."""
        return self.counts.get("waiting", 0) + self.counts.get("held_out", 0)


class Desk:
    """Does it.

    Args:
        runtime: With its adapters, and what they learn.
        loop: The event loop that it runs on.
    """

    def __init__(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        self._runtime = runtime
        self._loop = loop

    def send(
        self, caller: Caller, adapter: str, rows: Sequence[Mapping[str, object]], user: str = ""
    ) -> Taken:
        """Keep samples that an adapter is to learn from; they are on the disk when this returns.

        Args:
            caller: Who sends them.
            adapter: Its name.
            rows: Records, in one of the forms of training data; empty fields are left out.
            user: Whose words they hold, where a row says nothing else.

        Raises:
            SqlNotAllowedError: The caller may not add rows.
            AdapterNotFoundError: There is no such adapter, for this caller.
            InvalidRequestError: A row is no record; none is kept then.
            ConflictError: This runtime does not learn.
        """
        if not caller.can_write:
            raise SqlNotAllowedError("samples may not be added without leave to write")
        if len(rows) > MAX_ROWS:
            raise InvalidRequestError(
                f"more than {MAX_ROWS} samples at once", hint="Send them in parts."
            )
        name = self._wait(self._learning.check(_named(caller, adapter)))
        lines = [(number, _line(number, row)) for number, row in enumerate(rows, 1)]
        return self._wait(self._kept(name, lines, Owner(user=user, key=caller.name)))

    def create(self, caller: Caller, adapter: str, recipe: Recipe, why: str) -> AdapterInfo:
        """Make an adapter that adds nothing yet."""
        name, runtime = self._changing(caller, adapter), self._runtime

        def create(adapters: Adapters) -> AdapterInfo:
            create_adapter(adapters, name, runtime.model, recipe, _note(caller, why))
            return adapters.info(name)

        return self._do(create)

    def train(self, caller: Caller, adapter: str, policy: LearningPolicy | None) -> LearningStatus:
        """Let an adapter learn from what waits and is sent, or from the traffic by a policy."""
        name = self._changing(caller, adapter)
        learning = self._learning
        begun = learning.train(name) if policy is None else learning.set_policy(name, policy)
        self._wait(begun)
        return self._status(name)

    def stop(self, caller: Caller, adapter: str) -> LearningStatus:
        """Let an adapter learn no more; samples that wait stay."""
        name = self._changing(caller, adapter)
        self._wait(self._learning.stop_learning(name))
        return self._status(name)

    def promote(self, caller: Caller, ref: str, why: str) -> VersionId:
        """Let a name point at another of its versions: `NAME@VERSION`, `NAME:TAG`."""
        self._changing(caller, str(AdapterRef.parse(ref).name))
        return self._moved(lambda adapters: adapters.promote(ref, _note(caller, why)))

    def roll_back(self, caller: Caller, adapter: str, why: str) -> VersionId:
        """Undo the last promotion that was not undone yet."""
        name = self._changing(caller, adapter)
        return self._moved(lambda adapters: adapters.rollback(name, _note(caller, why)))

    def compact(self, caller: Caller) -> Collected:
        """Remove the versions that nothing leads to."""
        _check_manages(caller)
        if caller.adapters is not None:
            raise SqlNotAllowedError("a key for some adapters may not clean up after all of them")
        return self._do(lambda adapters: adapters.collect())

    def info(self, caller: Caller, ref: str) -> AdapterInfo:
        """Describe an adapter, or a version of it."""
        _named(caller, str(AdapterRef.parse(ref).name))
        return self._do(lambda adapters: adapters.info(ref))

    @property
    def _learning(self) -> LiveLearning:
        learning = self._runtime.learning
        if learning is None:
            raise ConflictError(
                "this server does not learn: train.enabled is off, or another process learns"
            )
        return learning

    async def _kept(
        self, name: AdapterName, lines: Sequence[tuple[int, bytes]], owner: Owner
    ) -> Taken:
        runtime, learning = self._runtime, self._learning
        longest = runtime.settings.train.buffer.max_sample_tokens
        maker = maker_of(runtime.model, min(runtime.model.context_length, longest) - 1)
        parts = []
        for start in range(0, len(lines), _AT_A_TIME):
            part = lines[start : start + _AT_A_TIME]
            read = await runtime.in_pool(lambda part=part: read_lines(part, maker, owner))  # type: ignore[misc]  # now
            for line in read:
                if line.error is not None:  # before any is kept
                    raise InvalidRequestError(
                        f"row {line.number}: {line.error}", hint=line.error.hint
                    )
            parts.append(read)
        source = f"sent-{int(time.time())}-{secrets.token_hex(4)}"
        counts: Counter[Added] = Counter()
        for read in parts:
            for taken in await learning.keep(name, read, source):
                counts.update(taken.recorded)
        return Taken(source=source, rows=len(lines), counts=dict(counts))

    def _status(self, name: AdapterName) -> LearningStatus:
        settings = self._runtime.settings
        return self._do(lambda adapters: learning_status(adapters, settings, name))[0]

    def _changing(self, caller: Caller, adapter: str) -> AdapterName:
        _check_manages(caller)
        return _named(caller, adapter)

    def _moved(self, move: Callable[[Adapters], VersionId]) -> VersionId:
        """Move a name, and let learning know: that ends a canary."""
        version = self._do(move)
        if self._runtime.learning is not None:
            self._wait(self._runtime.learning.refresh())
        return version

    def _do(self, work: Callable[[Adapters], Result]) -> Result:
        runtime = self._runtime
        return self._wait(runtime.in_pool(lambda: work(runtime.adapters)))

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _check_manages(caller: Caller) -> None:
    if not caller.can_manage:
        raise SqlNotAllowedError(
            "adapters are changed with the scope admin", hint="Use a key that has it."
        )


def _named(caller: Caller, adapter: str) -> AdapterName:
    name = adapter_name(adapter)
    if caller.adapters is not None and name not in caller.adapters:
        raise AdapterNotFoundError(f"no adapter is called {name!r}")
    return name


def _note(caller: Caller, why: str) -> Note:
    return Note(by=f"key {caller.name}", why=why)


def _line(number: int, row: Mapping[str, object]) -> bytes:
    """Write a row as a line of training data."""
    record = {name: value for name, value in row.items() if value is not None}
    try:
        for name in _NESTED:
            value = record.get(name)
            if isinstance(value, str):
                record[name] = json.loads(value)
        return json.dumps(record, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequestError(f"row {number} is no record: {error}") from error
