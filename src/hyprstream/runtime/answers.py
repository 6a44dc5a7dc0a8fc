"""Answers on their way from the engine to whoever reads them. On the event loop."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hyprstream.engine.request import FinishReason, Request
from hyprstream.engine.stream import TokenStream
from hyprstream.errors import HyprstreamError
from hyprstream.refs import VersionId
from hyprstream.runtime.fitting_request import Fitted
from hyprstream.runtime.text import AnswerText, Completion, TokenText, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDelta:
    """A piece of one of several answers.

    Attributes:
        answer: Which one, counted over all prompts: prompt i of n answers each begins at i * n.
        text: Whole characters that will not change.
        tokens: The tokens that were generated, where log probabilities were asked for.
        finish: Why the answer ends with this piece; None while it goes on.
    """

    answer: int
    text: str
    tokens: tuple[TokenText, ...] = ()
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One prompt and its answers.

    Attributes:
        request: What was asked for.
        stream: What comes of it.
        answers: Made of that.
        first: Number of the first of them.
    """

    request: Request
    stream: TokenStream
    answers: Sequence[AnswerText]
    first: int


class Answers:
    """The answers to one or more prompts: an async iterator over `AnswerDelta`.

    Several prompts are read one after the other, although they are computed together. Leaving
    the context, or `close`, aborts what still runs.

    Args:
        parts: The prompts.
        reports_tokens: Give out tokens also where they add no text.
        held: What is let go at the end: the adapter version that answers.
        version: That version; None is the base model.
        tell: Called with each part that is over, and the code of the error that ended it.
        fitted: How the version was made, if it was for this request.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        reports_tokens: bool,
        held: AsyncExitStack,
        version: VersionId | None,
        tell: Callable[[Part, str | None], None],
        fitted: Fitted | None = None,
    ) -> None:
        self.version = version
        self.fitted = fitted
        self._parts = parts
        self._reports_tokens = reports_tokens
        self._held = held
        self._tell = tell
        self._left = deque(parts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnswerDelta:
        """Wait for the next piece.

        Raises:
            HyprstreamError: What the request failed with.
        """
        while self._left:
            delta = await self._next(self._left[0])
            if delta is not None:
                return delta
        await self._held.aclose()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Abort what still runs, and let the adapter go."""
        while self._left:
            self._end(self._left[0], None)
        await self._held.aclose()

    async def finish(self) -> list[Completion]:
        """Wait for all answers, and return them."""
        async with self:
            async for _ in self:
                pass
        return self.completions

    @property
    def completions(self) -> list[Completion]:
        """All answers as they are."""
        return [text.completion for part in self._parts for text in part.answers]

    @property
    def usage(self) -> Usage:
        """Tokens of all prompts, each counted once, and of all answers so far."""
        return Usage(
            prompt_tokens=sum(len(part.request.token_ids) for part in self._parts),
            completion_tokens=sum(text.num_tokens for part in self._parts for text in part.answers),
        )

    async def _next(self, part: Part) -> AnswerDelta | None:
        """Take one event; None if there is nothing to show for it."""
        try:
            event = await anext(part.stream)
        except StopAsyncIteration:
            self._end(part, None)
            return None
        except HyprstreamError as error:
            self._end(part, error.code)
            raise
        number = event.sequence_id.answer
        text = part.answers[number]
        before = text.finish
        if event.token is None or before is not None:
            return None  # what follows a stop string is nobody's
        delta = text.push(event.token)
        finish = text.finish
        assert finish != "abort", "nobody aborts an answer that is read"
        if finish and all(other.finish for other in part.answers):
            self._end(part, None)
        elif text.found_stop:
            part.stream.end_answer(number)  # the engine knows nothing of stop strings
        if not (delta.text or finish or (self._reports_tokens and delta.tokens)):
            return None
        tokens = delta.tokens if self._reports_tokens else ()
        return AnswerDelta(
            answer=part.first + number, text=delta.text, tokens=tokens, finish=finish
        )

    def _end(self, part: Part, error: str | None) -> None:
        self._left.remove(part)
        part.stream.close()
        for text in part.answers:
            text.abort()
        self._tell(part, error)
