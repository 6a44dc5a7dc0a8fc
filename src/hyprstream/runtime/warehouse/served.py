"""The model of a runtime in SQL: statements share its engine, and its adapters, with all others."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import TimeoutError as LateError
from typing import Any, TypeVar

import numpy as np

from hyprstream.engine.request import SamplingParams
from hyprstream.errors import DeadlineExceededError, InvalidRequestError
from hyprstream.refs import AdapterRef, VersionId
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.text_service import Caller
from hyprstream.runtime.warehouse.brain import MOST_TOKENS, Embedded
from hyprstream.vectors.table import Stamp

_AT_A_TIME = 16  # prompts that one statement has in the engine
_FEW = 4  # texts of a call that may be one of constants
_MOST_RECENT, _RECENT_S = 64, 10.0

Result = TypeVar("Result")


class ServedBrain:
    """A `Brain` of a runtime. From any thread but that of the event loop, which has to run.

    Args:
        runtime: Serves.
        loop: The event loop that it runs on.
        salt: Prompts that were computed are shared with callers of the same salt alone.
    """

    def __init__(self, runtime: Runtime, loop: asyncio.AbstractEventLoop, salt: str) -> None:
        self._runtime = runtime
        self._loop = loop
        self._salt = f"sql {salt}"
        self._turn = threading.Lock()
        self._last: OrderedDict[tuple[Any, ...], tuple[float, Any]] = OrderedDict()

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self._runtime.model.info.width

    def embed(self, texts: Sequence[str], adapter: str = "") -> Embedded:
        """Embed texts, with the adapter of a reference unless that is empty.

        Raises:
            HyprstreamError: There is no such adapter, or it is for another model.
        """
        model = self._runtime.model
        name, version = self._version(adapter)

        def embed() -> Any:
            embedded = self._wait(self._runtime.text.embed(texts, self._caller(name, version)))
            return np.array(embedded.vectors, np.float32).reshape(len(texts), self.dim)

        vectors = self._recent(("embed", tuple(texts), name, version), embed)
        return Embedded(
            vectors, Stamp(model=model.ref, adapter=name, version=version, pooling=model.pooling)
        )

    def generate(self, prompts: Sequence[str], adapter: str, max_tokens: int) -> list[str]:
        """Continue each text, always with the likeliest token; nothing is learnt from that.

        Raises:
            InvalidRequestError: `max_tokens` is out of range.
            HyprstreamError: The model does not generate, or the adapter is of no use.
        """
        if not 1 <= max_tokens <= MOST_TOKENS:
            raise InvalidRequestError(f"max_tokens is {max_tokens}, not 1 to {MOST_TOKENS}")
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        name, version = self._version(adapter)
        answers: list[str] = self._recent(
            ("generate", tuple(prompts), name, version, max_tokens),
            lambda: self._wait(self._generated(prompts, params, name, version)),
        )
        return answers

    async def _generated(
        self, prompts: Sequence[str], params: SamplingParams, name: str, version: VersionId
    ) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(prompts), _AT_A_TIME):
            part = prompts[start : start + _AT_A_TIME]
            caller = self._caller(name, version)
            answers = await self._runtime.text.complete(part, params, caller)
            texts += [completion.text for completion in await answers.finish()]
        return texts

    def _recent(self, call: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Compute, unless that was done just now.

        Of constants a statement asks while it is prepared, when it is bound, and when it runs.
        """
        if len(call[1]) > _FEW:
            return compute()
        with self._turn:
            known = self._last.get(call)
        if known is not None and time.monotonic() - known[0] < _RECENT_S:
            return known[1]
        found = compute()
        with self._turn:
            self._last[call] = (time.monotonic(), found)
            if len(self._last) > _MOST_RECENT:
                self._last.popitem(last=False)
        return found

    def _version(self, adapter: str) -> tuple[str, VersionId]:
        """Settle which version is meant, so that all texts are computed with the same."""
        if not adapter:
            return "", VersionId("")
        return AdapterRef.parse(adapter).name, self._wait(self._runtime.resolve(adapter))

    def _caller(self, name: str, version: VersionId) -> Caller:
        ref = f"{name}@{version}" if name else None
        return Caller(adapter=ref, salt=self._salt, may_be_learnt=False)

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        timeout_s = self._runtime.settings.sql.timeout_s
        doing = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return doing.result(timeout_s)
        except LateError:
            doing.cancel()  # or the engine would go on for nobody
            raise DeadlineExceededError(
                f"the model took more than {timeout_s} s", hint="Ask for less at a time."
            ) from None
