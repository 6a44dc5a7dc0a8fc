"""Text in, text out, for many callers at a time: the async twin of `Model`. On the event loop.

Templates and tokenizers run on threads of a pool, since a long prompt would hold up everybody.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hyprstream.engine.engine import Engine
from hyprstream.engine.request import MAX_ANSWERS, Pooling, Request, SamplingParams
from hyprstream.engine.stream import Times
from hyprstream.errors import InvalidRequestError, UnsupportedError
from hyprstream.refs import AdapterName, AdapterRef, RequestId, VersionId
from hyprstream.runtime.answers import Answers, Part
from hyprstream.runtime.fitting import Fitting, learnt_texts
from hyprstream.runtime.fitting_request import Fit, Fitted
from hyprstream.runtime.model import Message, Model
from hyprstream.runtime.residence import Residence
from hyprstream.runtime.text import AnswerText
from hyprstream.train.buffer import NOBODY, Owner

Prompt = str | Sequence[int]

_EMBEDDED_AT_A_TIME = 64  # of one call; others come in between
_SEEDS = 32  # bits

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and what for.

    Attributes:
        id: Of the request; the answers are known by it.
        adapter: Reference of the adapter to answer with; None is the base model.
        salt: Callers share cached prompts only with callers of the same salt.
        may_be_learnt: The caller does not object to being learnt from.
        owner: Whose words a sample would hold.
        fit: Steps on the prompt before it is answered; None for none.
    """

    id: RequestId = field(default_factory=lambda: RequestId(secrets.token_hex(16)))
    adapter: str | None = None
    salt: str = ""
    may_be_learnt: bool = True
    owner: Owner = NOBODY
    fit: Fit | None = None

    @property
    def key(self) -> str:
        """By what a canary chooses its requests: the user, or else the request.

        All requests of a user are answered by the same version, while a canary is out.
        """
        user = self.owner.user
        return f"user\0{self.owner.key}\0{user}" if user else f"request\0{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One answer that is over, for whoever keeps note of them.

    Attributes:
        id: Of the answer: that of the request, with `/` and a number if it is not the first.
        adapter: The adapter that was named.
        version: The version that answered; None too where it was made for the request alone.
        prompt: Tokens of the prompt.
        answer: Tokens of the answer.
        outcome: `stop` where the model ended it itself; else `length`, `stop_string`, `abort`,
            or the code of an error.
        may_be_learnt: The caller does not object.
        owner: Whose words they are.
        times: How far the request got, and when; of several answers the first has them.
    """

    id: RequestId
    adapter: AdapterName | None
    version: VersionId | None
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    outcome: str
    may_be_learnt: bool
    owner: Owner = NOBODY
    times: Times | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Vectors of texts.

    Attributes:
        vectors: One for each text.
        num_tokens: Tokens of all texts.
    """

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int


class TextService:
    """Answers, continues, embeds and counts.

    Args:
        model: The base model, which serves in the engine.
        engine: Computes.
        residence: Knows adapters; None where the model takes none.
        pool: Threads for what takes long without the engine.
        note: Told of each answer that is over.
        fitting: Fits adapters to prompts; None refuses requests that ask for it.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine,
        residence: Residence | None,
        pool: Executor,
        *,
        note: Callable[[Answered], None] = lambda _answered: None,
        fitting: Fitting | None = None,
    ) -> None:
        self._model = model
        self._engine = engine
        self._residence = residence
        self._pool = pool
        self._note = note
        self._fitting = fitting

    async def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        caller: Caller,
        *,
        num_answers: int = 1,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Answers:
        """Answer a conversation through the model's chat template.

        Args:
            messages: As for `Model.chat_stream`.
            params: How to sample.
            caller: Who asks.
            num_answers: Independent answers; answer i has seed + i.
            tools: Functions that the model may call.
            variables: Further ones of the template.

        Raises:
            HyprstreamError: Whatever stands against it; part of it only while answers are read.
        """
        self._check_generates()
        prompt = await self._in_pool(
            lambda: self._model.chat_tokens(messages, tools=tools, **(variables or {}))
        )
        texts = [] if caller.fit is None else await self._texts(learnt_texts(messages))
        return await self._answer([prompt], params, caller, num_answers, texts=texts)

    async def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        caller: Caller,
        *,
        num_answers: int = 1,
    ) -> Answers:
        """Continue texts, or tokens, as they are.

        Raises:
            HyprstreamError: As `chat`.
        """
        self._check_generates()
        encoded = await self._in_pool(lambda: [self._encoded(prompt) for prompt in prompts])
        return await self._answer(encoded, params, caller, num_answers, texts=None)

    async def embed(
        self, texts: Sequence[Prompt], caller: Caller, *, pooling: Pooling | None = None
    ) -> Embedded:
        """Make one vector of each text.

        Raises:
            HyprstreamError: Whatever stands against it, such as a text that is too long.
        """
        encoded = await self._in_pool(lambda: [self._encoded(text) for text in texts])
        turns = asyncio.Semaphore(_EMBEDDED_AT_A_TIME)
        async with AsyncExitStack() as held:
            # Vectors are compared with one another: a canary, which is another model, makes none.
            version = await self._version(caller, held, None)

            async def one(number: int, tokens: list[int]) -> tuple[float, ...]:
                request = Request(
                    id=RequestId(f"{caller.id}/{number}"),
                    token_ids=tuple(tokens),
                    adapter=version,
                    salt=caller.salt,
                    embeds=True,
                    pooling=pooling,
                )
                async with turns, self._engine.submit(request) as stream:
                    async for event in stream:
                        if event.embedding is not None:
                            return event.embedding
                raise AssertionError("a request that embeds ends with a vector or an error")

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(n, text)) for n, text in enumerate(encoded)]
            except ExceptionGroup as several:
                raise several.exceptions[0] from None
            vectors = [task.result() for task in tasks]
        return Embedded(vectors=tuple(vectors), num_tokens=sum(map(len, encoded)))

    async def tokens(self, prompt: str, *, add_special: bool = True) -> list[int]:
        """Turn a text into tokens."""
        return await self._in_pool(
            lambda: self._model.tokenizer.encode(prompt, add_special=add_special)
        )

    async def chat_tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Turn a conversation into the tokens that the model is given; errors as in `chat`."""
        return await self._in_pool(
            lambda: self._model.chat_tokens(messages, tools=tools, **variables)
        )

    async def text(self, tokens: Sequence[int]) -> str:
        """Turn tokens into text, control tokens included."""
        return await self._in_pool(
            lambda: self._model.tokenizer.decode(tokens, skip_special=False, continues=True)
        )

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """Return what a token adds within a text, as text and as bytes."""
        tokenizer = self._model.tokenizer
        return tokenizer.token_text(token_id), tokenizer.token_bytes(token_id)

    async def _answer(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        caller: Caller,
        num_answers: int,
        *,
        texts: Sequence[Sequence[int]] | None,
    ) -> Answers:
        """Answer prompts; `texts` are those of a chat to fit to, None if texts are continued."""
        if len(prompts) * num_answers > MAX_ANSWERS:
            raise InvalidRequestError(
                f"{len(prompts)} prompts with {num_answers} answers each",
                hint=f"Ask for {MAX_ANSWERS} answers or fewer at a time.",
            )
        seed = params.seed if params.seed is not None else secrets.randbits(_SEEDS)
        params = replace(params, seed=seed)
        held = AsyncExitStack()
        try:
            fitted = await self._fitted(caller, held, prompts if texts is None else texts)
            version = (
                await self._version(caller, held, caller.key) if fitted is None else fitted.version
            )
            parts = [
                self._part(
                    prompt,
                    params,
                    caller,
                    version,
                    (number * num_answers, num_answers),
                    continues=texts is None,
                )
                for number, prompt in enumerate(prompts)
            ]
        except BaseException:
            await held.aclose()
            raise
        return Answers(
            parts,
            reports_tokens=params.logprobs is not None,
            held=held,
            version=version,
            fitted=fitted,
            tell=lambda part, error: self._tell(caller, part, error),
        )

    def _part(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        caller: Caller,
        version: VersionId | None,
        answers: tuple[int, int],
        *,
        continues: bool,
    ) -> Part:
        """Submit one prompt; `answers` is the number of its first answer, and how many."""
        first, num_answers = answers
        request = Request(
            id=answer_id(caller.id, first),
            token_ids=tuple(prompt),
            params=params,
            adapter=version,
            num_answers=num_answers,
            salt=caller.salt,
        )
        assert params.seed is not None, "a seed was drawn"
        texts = [
            AnswerText(
                self._model.tokenizer,
                params,
                prompt_tokens=len(prompt),
                seed=params.seed + number,
                continues=continues,
            )
            for number in range(num_answers)
        ]
        stream = self._engine.submit(request)
        return Part(request=request, stream=stream, answers=texts, first=first)

    async def _fitted(
        self, caller: Caller, held: AsyncExitStack, texts: Sequence[Sequence[int]]
    ) -> Fitted | None:
        if caller.fit is None:
            return None
        return await held.enter_async_context(
            self._fits().fitted(caller.adapter, caller.fit, texts)
        )

    def _fits(self) -> Fitting:
        if self._fitting is None:
            raise UnsupportedError(
                "requests are not adapted to their prompts here",
                hint="Leave adapt out, or set train.enabled and train.adapt.enabled.",
            )
        return self._fitting

    async def _texts(self, texts: Sequence[str]) -> list[list[int]]:
        return await self._in_pool(lambda: [self._encoded(text) for text in texts])

    async def _version(
        self, caller: Caller, held: AsyncExitStack, key: str | None
    ) -> VersionId | None:
        if caller.adapter is None:
            return None
        if self._residence is None:
            raise UnsupportedError(
                "this model embeds texts and takes no adapters",
                hint="Name the model alone.",
            )
        return await held.enter_async_context(self._residence.in_use(caller.adapter, key))

    def _tell(self, caller: Caller, part: Part, error: str | None) -> None:
        adapter = None if caller.adapter is None else AdapterRef.parse(caller.adapter).name
        for number, text in enumerate(part.answers):
            ended = "stop_string" if text.found_stop else text.finish or "abort"
            self._note(
                Answered(
                    id=answer_id(caller.id, part.first + number),
                    adapter=adapter,
                    version=part.request.adapter if caller.fit is None else None,
                    prompt=part.request.token_ids,
                    answer=text.token_ids,
                    outcome=error or ended,
                    may_be_learnt=caller.may_be_learnt and caller.fit is None,
                    owner=caller.owner,
                    times=None if number else part.stream.times,
                )
            )

    def _check_generates(self) -> None:
        _ = self._model.decoder  # raises for an encoder

    def _encoded(self, prompt: Prompt) -> list[int]:
        return self._model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    async def _in_pool(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def answer_id(request_id: RequestId, number: int) -> RequestId:
    """Name one answer of those that a caller asked for, as feedback names it."""
    return request_id if number == 0 else RequestId(f"{request_id}/{number}")
