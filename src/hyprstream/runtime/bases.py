"""Several base models behind one server: the first one is always there, others come and go.

Each has a runtime of its own, with its own engine. What is loaded and unloaded is decided on
the event loop, one model at a time; the work itself is done on threads.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal, Self

from hyprstream.errors import InvalidSettingsError, ModelsBusyError
from hyprstream.refs import ModelFingerprint, ModelRef
from hyprstream.runtime.device import settle_memory
from hyprstream.runtime.model import Model
from hyprstream.runtime.residence import Resident
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig

log = logging.getLogger(__name__)

State = Literal["loaded", "loading", "unloaded"]

_MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How one of the models stands.

    Attributes:
        name: What clients call it.
        state: Whether it can answer at once.
        size_bytes: Of its weights as they are stored; None while it was never loaded.
        context_length: Most positions; None while it was never loaded.
        num_requests: Requests that hold something of its engine.
        until: When it goes if nobody asks for it; None where it stays, works, or is not there.
        adapters: Versions that its engine knows.
    """

    name: str
    state: State
    size_bytes: int | None
    context_length: int | None
    num_requests: int
    until: datetime | None
    adapters: Sequence[Resident]


@dataclass(slots=True)
class _Base:
    """A model that comes and goes."""

    name: str
    ref: str
    runtime: Runtime | None = None
    loading: "asyncio.Task[Runtime] | None" = None
    num_users: int = 0
    used_at: float = 0.0
    size_bytes: int | None = None
    context_length: int | None = None
    fingerprint: ModelFingerprint | None = None

    def has_loaded(self, task: "asyncio.Task[Runtime]") -> None:
        """Take note that loading is over; who waits for it is told by the task itself."""
        self.loading = None
        if not task.cancelled():
            task.exception()  # also where nobody waits any more

    @property
    def is_there(self) -> bool:
        """Tell whether it can answer: a runtime whose engine has failed cannot."""
        return self.runtime is not None and self.runtime.failure is None


@dataclass(frozen=True, slots=True)
class Serving:
    """A base model while it is held.

    Attributes:
        name: What clients call it.
        runtime: Serves with it.
        is_first: It is the one that is always there.
    """

    name: str
    runtime: Runtime
    is_first: bool = field(default=True)

    def called(self, adapter: str | None) -> str:
        """Say what clients call an adapter of it, or the model alone."""
        if adapter is None:
            return self.name
        return adapter if self.is_first else f"{self.name}:{adapter}"


class Bases:
    """The base models of a server, by name.

    Invariants, checked by `test_bases.py`: a model that somebody uses is not unloaded; no more
    than `server.max_loaded` are there at a time; who asks for one that is going waits for it to
    come back.

    Args:
        first: The runtime that is always there; its settings name the others.
        max_wait_s: Longest wait for room while all models work.
        clock: Seconds.
    """

    def __init__(
        self,
        first: Runtime,
        *,
        max_wait_s: float = _MAX_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.first = first
        config = first.settings.server
        self.first_name, *others = check_names(first.model.ref, config)
        self._others = {
            name: _Base(name, ref) for name, ref in zip(others, config.models, strict=True)
        }
        # What belongs to the whole home is the first runtime's: who learns, and the journal.
        settings = first.settings
        train = replace(settings.train, enabled=False)
        self._settings = settings.model_copy(update={"train": train})
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._tidying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._others and self._settings.server.keep_loaded_s:
            self._tidying = asyncio.create_task(self._tidy())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            with suppress(asyncio.CancelledError):
                await self._tidying
        for base in self._others.values():
            if base.loading is not None:
                with suppress(Exception):
                    await base.loading
            await self._close(base)

    def find(self, name: str) -> str | None:
        """Return which of the models a name is one of, and None if it is none.

        A reference is a name as well, but not a path: that is no name for strangers.
        """
        names = {self.first_name: self.first.model.ref}
        names |= {base.name: base.ref for base in self._others.values()}
        for known, ref in names.items():
            if name == known or (name == ref and not ModelRef.parse(ref).is_path):
                return known
        return None

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Serving]:
        """Hold a model, loading it first if need be; it stays while it is held.

        Raises:
            ModelsBusyError: All models work, and there is no room for one more.
            HyprstreamError: It cannot be loaded.
        """
        if name == self.first_name:
            yield Serving(name, self.first)
            return
        base = self._others[name]
        base.num_users += 1
        try:
            yield Serving(name, await self._loaded(base), is_first=False)
        finally:
            base.num_users -= 1
            base.used_at = self._clock()
            self._left.set()

    def listed(self) -> list[Running]:
        """Tell how all models stand, the first one first."""
        first = Running(
            name=self.first_name,
            state="loaded",
            size_bytes=self.first.model.info.size_bytes,
            context_length=self.first.model.context_length,
            num_requests=self.first.num_requests,
            until=None,
            adapters=self.first.residents,
        )
        return [first, *map(self._running, self._others.values())]

    def fingerprint(self, name: str) -> ModelFingerprint | None:
        """Tell what a model is, if that is known: it is once the model was loaded."""
        return (
            self.first.model.fingerprint
            if name == self.first_name
            else (self._others[name].fingerprint)
        )

    def _running(self, base: _Base) -> Running:
        runtime = base.runtime
        is_idle = runtime is not None and not base.num_users
        keep_s = self._settings.server.keep_loaded_s
        until = None
        if is_idle and keep_s:
            left_s = max(0.0, base.used_at + keep_s - self._clock())
            until = datetime.now(tz=UTC) + timedelta(seconds=left_s)
        return Running(
            name=base.name,
            state="loading" if base.loading else "unloaded" if runtime is None else "loaded",
            size_bytes=base.size_bytes,
            context_length=base.context_length,
            num_requests=0 if runtime is None else runtime.num_requests,
            until=until,
            adapters=() if runtime is None else runtime.residents,
        )

    async def _loaded(self, base: _Base) -> Runtime:
        if base.is_there:
            assert base.runtime is not None, "it is there"
            return base.runtime
        if base.loading is None:
            base.loading = asyncio.create_task(self._load(base))
            base.loading.add_done_callback(base.has_loaded)
        # Who goes away ends only the own wait: others may wait for the same model.
        return await asyncio.shield(base.loading)

    async def _load(self, base: _Base) -> Runtime:
        async with self._turn:
            await self._close(base)  # if its engine has failed
            await self._make_room()
            log.info("loading %s", base.name)
            model, base.fingerprint = await asyncio.to_thread(self._read, base.ref)
            base.size_bytes = model.info.size_bytes
            base.context_length = model.context_length
            runtime = Runtime(model, self._settings)
            await runtime.__aenter__()
            base.used_at = self._clock()
            base.runtime = runtime
            return runtime

    def _read(self, ref: str) -> tuple[Model, ModelFingerprint]:
        model = self.first.model.load_another(ref, self._settings)
        return model, model.fingerprint

    async def _make_room(self) -> None:
        """Unload the models that were not used for longest, until one more may come."""
        until = self._clock() + self._max_wait_s
        while True:
            there = [base for base in self._others.values() if base.runtime is not None]
            if len(there) + 1 < self._settings.server.max_loaded:  # the first one counts
                return
            idle = [base for base in there if not base.num_users]
            if idle:
                await self._close(min(idle, key=lambda base: base.used_at))
                continue
            self._left.clear()
            try:
                async with asyncio.timeout(until - self._clock()):
                    await self._left.wait()
            except TimeoutError:
                raise ModelsBusyError(max_loaded=self._settings.server.max_loaded) from None

    async def _close(self, base: _Base) -> None:
        """Let a model go, and give its memory back; its turn has been taken."""
        runtime, base.runtime = base.runtime, None
        if runtime is None:
            return
        log.info("unloading %s", base.name)
        await runtime.__aexit__(None, None, None)
        del runtime
        await asyncio.to_thread(_give_back)

    async def _tidy(self) -> None:
        """Unload what nobody has used for a while."""
        keep_s = self._settings.server.keep_loaded_s
        while True:
            await asyncio.sleep(min(keep_s / 4, 5.0))
            for base in self._others.values():
                async with self._turn:
                    is_old = self._clock() - base.used_at >= keep_s
                    if base.runtime is not None and not base.num_users and is_old:
                        await self._close(base)


def served_name(ref: str) -> str:
    """Return the last part of a reference, without the suffix of a file."""
    parsed = ModelRef.parse(ref)
    last = parsed.name.rstrip("/").rpartition("/")[2]
    return last.removesuffix(".gguf").removesuffix(".safetensors") or "model"


def check_names(ref: str, config: ServerConfig) -> list[str]:
    """Return what clients call the models, the first one first.

    Args:
        ref: Of the first one.
        config: Names the others.

    Raises:
        InvalidReferenceError: A reference is none.
        InvalidSettingsError: Two are called alike.
    """
    names = [config.model_name or served_name(ref), *map(served_name, config.models)]
    if len(set(names)) < len(names):
        raise InvalidSettingsError(
            f"two of the models are called alike: {', '.join(names)}",
            hint="Name the first one with --model-name, or leave one out.",
        )
    return names


def _give_back() -> None:
    gc.collect()  # networks and their layers refer to one another
    settle_memory()
