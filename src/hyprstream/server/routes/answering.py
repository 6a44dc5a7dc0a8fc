"""What all protocols have in common: the answer, at once or as it comes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.runtime.answers import AnswerDelta, Answers
from hyprstream.runtime.bases import Serving
from hyprstream.runtime.text_service import Caller, TextService
from hyprstream.runtime.tools import plain_messages
from hyprstream.server.chunks import Head, Writer, usage_record
from hyprstream.server.metrics import Watch
from hyprstream.server.schemas.chat import ChatRequest
from hyprstream.server.sse import EventStream, encode
from hyprstream.server.state import caller_of, serving, state_of, unless_gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """What the answers to one request are written from.

    Attributes:
        head: What all of them has in common.
        answers: They themselves.
        texts: Knows tokens.
        calls_tools: They may hold calls of tools.
    """

    head: Head
    answers: Answers
    texts: TextService
    calls_tools: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a protocol writes answers.

    Attributes:
        prefix: Of their ids.
        kind: What `Head` calls them.
        whole: Writes answers that are over.
        writer: Writes them as they come.
    """

    prefix: str
    kind: str
    whole: Callable[[Answering], dict[str, Any]]
    writer: Callable[[Answering], Writer]


async def answer_chat(
    request: Request, body: ChatRequest, lora: str | None, form: Form
) -> Response:
    """Answer a chat, in whatever protocol it came."""
    config = state_of(request).config
    caller = caller_of(
        request,
        form.prefix,
        body.model,
        lora,
        learn=body.learn,
        user=body.spoken_by,
        adapt=body.adapt,
    )
    async with AsyncExitStack() as held:
        base = await held.enter_async_context(serving(request, body.model, lora))
        runtime = base.runtime
        use = body.tool_use(config)
        tools, params = use.applied(runtime.model, body.sampling(config))
        variables = body.chat_template_kwargs
        start = runtime.text.chat(
            plain_messages([message.plain() for message in body.messages]),
            params,
            caller,
            num_answers=body.n,
            tools=tools,
            variables=variables.model_dump(exclude_none=True) if variables else None,
        )

        def answering(answers: Answers) -> Answering:
            head = head_of(base, caller, form.kind, answers)
            return Answering(head=head, answers=answers, texts=runtime.text, calls_tools=use.calls)

        if body.stream:
            return await answer_stream(
                request, start, lambda found: form.writer(answering(found)), held
            )
        return await answer_whole(request, start, lambda found: form.whole(answering(found)))


def head_of(base: Serving, caller: Caller, kind: str, answers: Answers) -> Head:
    """Say what all of an answer has in common."""
    version = answers.version
    return Head(
        id=caller.id,
        kind=kind,
        created=int(time.time()),
        model=base.called(caller.adapter),
        fingerprint=f"fp_{version[:12]}" if version else f"fp_{base.name}",
        fitted=answers.fitted,
    )


async def answer_whole(
    request: Request,
    start: Coroutine[Any, Any, Answers],
    whole: Callable[[Answers], dict[str, Any]],
) -> Response:
    """Wait for the whole answer, or until the client goes away."""
    state = state_of(request)
    watch = state.metrics.watch()

    async def work() -> Answers:
        answers = await start
        async with answers:
            async for _ in answers:
                watch.piece()
        return answers

    answers = await unless_gone(request, work())
    usage = answers.usage
    state.metrics.tokens(usage.prompt_tokens, usage.completion_tokens)
    return Response(encode(whole(answers)), media_type="application/json")


def choices_record(answering: Answering, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Write answers as OpenAI's chats and completions have them."""
    usage = usage_record(answering.answers.usage)
    return {**answering.head.record(), "choices": choices, "usage": usage}


async def answer_stream(
    request: Request,
    start: Coroutine[Any, Any, Answers],
    writer_of: Callable[[Answers], Writer],
    held: AsyncExitStack,
) -> Response:
    """Begin to stream; what is held is held until the end of the stream.

    What goes wrong before the first piece, or in the first seconds, is an answer of its own
    with a status; later errors are frames.
    """
    state = state_of(request)
    watch = state.metrics.watch()
    answers = await unless_gone(request, start)
    first = asyncio.ensure_future(anext(answers, None))
    kept = AsyncExitStack()

    async def finish() -> None:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await answers.close()
        await kept.aclose()
        usage = answers.usage
        state.metrics.tokens(usage.prompt_tokens, usage.completion_tokens)

    try:
        await asyncio.wait([first], timeout=state.config.ping_s)
        if first.done():
            first.result()
    except BaseException:
        await finish()
        raise
    writer = writer_of(answers)
    kept = held.pop_all()
    return EventStream(
        _frames(answers, first, writer, watch),
        ping_s=state.config.ping_s,
        write_timeout_s=state.config.write_timeout_s,
        finish=finish,
        ping=writer.ping,
        failed=writer.failed,
    )


async def _frames(
    answers: Answers,
    first: "asyncio.Future[AnswerDelta | None]",
    writer: Writer,
    watch: Watch,
) -> AsyncIterator[bytes]:
    if begin := writer.begin():
        yield begin
    delta = await asyncio.shield(first)
    while delta is not None:
        watch.piece()
        if frames := writer.piece(delta):
            yield frames
        delta = await anext(answers, None)
    yield writer.end(answers)
