"""From token events to text as it streams, and to the completion it adds up to."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

from hyprstream.engine.request import SamplingParams, TokenEvent, TokenLogprobs
from hyprstream.engine.stop_strings import StopStrings
from hyprstream.models.tokenizer import Tokenizer

Clock = Callable[[], float]
Finish = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """One token of an answer, with its log probabilities if they were asked for."""

    token_id: int
    text: str
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """A piece of an answer: whole characters that will not change."""

    text: str
    tokens: tuple[TokenText, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens in and out."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time went, in seconds of wall clock.

    Attributes:
        prompt_s: From the start to the first token.
        generate_s: From the first token to the last.
    """

    prompt_s: float
    generate_s: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def prompt_tokens_per_s(self) -> float:
        """Speed over the prompt; 0 when nothing was computed."""
        return self.prompt_tokens / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed over the tokens after the first; 0 where there are none."""
        later = max(self.completion_tokens - 1, 0)
        return later / self.generate_s if self.generate_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished answer.

    Attributes:
        text: The answer, without what ended it.
        finish_reason: `stop` at an end token or stop string, `length` at a limit, `abort`
            when the caller closed the stream.
        seed: What reproduces the answer.
        tokens: The tokens of the answer; end tokens are not among them.
        stop_string: The stop string that ended it, if one did.
    """

    text: str
    finish_reason: Finish
    usage: Usage
    timings: Timings
    seed: int
    tokens: tuple[TokenText, ...]
    stop_string: str | None = None


class AnswerText:
    """One answer in the making: takes token events, gives text, adds up to a `Completion`.

    Plain bookkeeping: whoever computes the tokens pushes them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        prompt_tokens: int,
        seed: int,
        continues: bool = False,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Start an answer.

        Args:
            tokenizer: Of the model.
            params: What was asked for; its stop strings are looked for here.
            prompt_tokens: Length of the prompt.
            seed: What reproduces the answer.
            continues: The answer goes on from the prompt's text, so it keeps a first blank.
            clock: Seconds that pass.
        """
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream(continues=continues)
        self._stops = StopStrings(params.stop)
        self._prompt_tokens = prompt_tokens
        self._seed = seed
        self._clock = clock
        self._started = clock()
        self._first: float | None = None
        self._last = self._started
        self._text: list[str] = []
        self._tokens: list[TokenText] = []
        self._token_ids: list[int] = []
        self._finish: Finish | None = None

    @property
    def finish(self) -> Finish | None:
        """Why the answer ended; None while it goes on."""
        return self._finish

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens that were generated, the one that ended the answer included."""
        return tuple(self._token_ids)

    @property
    def num_tokens(self) -> int:
        """Count them."""
        return len(self._token_ids)

    @property
    def found_stop(self) -> bool:
        """Tell whether a stop string ended the answer."""
        return self._stops.matched is not None

    def abort(self) -> None:
        """End the answer as it is, if it has not ended."""
        if self._finish is None:
            self._finish = "abort"

    def push(self, event: TokenEvent) -> TextDelta:
        """Take the next token and return what is certain of the text now."""
        self._last = self._clock()
        if self._first is None:
            self._first = self._last
        self._token_ids.append(event.token_id)
        tokens: tuple[TokenText, ...] = ()
        text = ""
        if not event.is_stop:
            piece = self._tokenizer.token_text(event.token_id)
            tokens = (TokenText(token_id=event.token_id, text=piece, logprobs=event.logprobs),)
            text = self._stops.push(self._decoder.push(event.token_id))
        if event.finish is not None and self._stops.matched is None:
            text += self._stops.push(self._decoder.finish())
            text += self._stops.finish()
        if self._stops.matched is not None:
            self._finish = "stop"
        elif event.finish is not None:
            self._finish = event.finish
        self._text.append(text)
        self._tokens.extend(tokens)
        return TextDelta(text=text, tokens=tokens)

    @property
    def completion(self) -> Completion:
        """The whole answer so far."""
        first = self._first if self._first is not None else self._last
        return Completion(
            text="".join(self._text),
            finish_reason=self._finish or "abort",
            usage=Usage(prompt_tokens=self._prompt_tokens, completion_tokens=len(self._token_ids)),
            timings=Timings(
                prompt_s=first - self._started,
                generate_s=self._last - first,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=len(self._token_ids),
            ),
            seed=self._seed,
            tokens=tuple(self._tokens),
            stop_string=self._stops.matched,
        )


class Generation:
    """An answer that is computed as it is read: iterate over it for text as it comes.

    Close it, or leave its `with` block, to stop early. Once it has ended, `completion`
    holds the whole.
    """

    def __init__(
        self,
        events: Iterator[TokenEvent],
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        prompt_tokens: int,
        seed: int,
        continues: bool = False,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Start an answer.

        Args:
            events: The tokens, computed as they are taken.
            tokenizer: As for `AnswerText`, with all that follows.
            params: What was asked for.
            prompt_tokens: Length of the prompt.
            seed: What reproduces the answer.
            continues: The answer goes on from the prompt's text.
            clock: Seconds that pass.
        """
        self._events = events
        self._reports_tokens = params.logprobs is not None
        self._answer = AnswerText(
            tokenizer,
            params,
            prompt_tokens=prompt_tokens,
            seed=seed,
            continues=continues,
            clock=clock,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TextDelta:
        """Compute until there is something to show."""
        while self._answer.finish is None:
            delta = self._answer.push(next(self._events))
            if self._answer.found_stop:
                self._close_events()
            if delta.text or (self._reports_tokens and delta.tokens):
                return delta
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop computing; what has been generated stays in `completion`."""
        self._answer.abort()
        self._close_events()

    @property
    def completion(self) -> Completion:
        """The whole answer so far; complete once the iteration has ended."""
        return self._answer.completion

    def _close_events(self) -> None:
        close = getattr(self._events, "close", None)
        if close is not None:
            close()
