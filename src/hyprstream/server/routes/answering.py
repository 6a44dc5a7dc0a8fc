"""What chats and completions have in common: the answer, at once or as it comes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.runtime.answers import AnswerDelta, Answers
from hyprstream.runtime.text import Completion
from hyprstream.runtime.text_service import Caller
from hyprstream.server.chunks import ChatChunks, Head, TextChunks, usage_record
from hyprstream.server.metrics import Watch
from hyprstream.server.sse import DONE, EventStream, encode
from hyprstream.server.state import ServerState, state_of, unless_gone

Choices = Callable[[Sequence[Completion]], list[dict[str, Any]]]


def head_of(state: ServerState, caller: Caller, kind: str, answers: Answers) -> Head:
    """Say what all of an answer has in common."""
    base = state.model_name
    version = answers.version
    return Head(
        id=caller.id,
        kind=kind,
        created=int(time.time()),
        model=base if caller.adapter is None else caller.adapter,
        fingerprint=f"fp_{version[:12]}" if version else f"fp_{base}",
    )


async def answer_whole(
    request: Request,
    start: Coroutine[Any, Any, Answers],
    kind: str,
    caller: Caller,
    choices: Choices,
) -> Response:
    """Wait for the whole answer, or until the client goes away."""
    state = state_of(request)
    watch = state.metrics.watch()

    async def work() -> tuple[Answers, list[Completion]]:
        answers = await start
        async with answers:
            async for _ in answers:
                watch.piece()
        return answers, answers.completions

    answers, completions = await unless_gone(request, work())
    usage = answers.usage
    state.metrics.tokens(usage.prompt_tokens, usage.completion_tokens)
    record = head_of(state, caller, kind, answers).record()
    record |= {"choices": choices(completions), "usage": usage_record(usage)}
    return Response(encode(record), media_type="application/json")


async def answer_stream(
    request: Request, start: Coroutine[Any, Any, Answers], writer_of: Callable[[Answers], Any]
) -> Response:
    """Begin to stream.

    What goes wrong before the first piece, or in the first seconds, is an answer of its own
    with a status; later errors are frames.
    """
    state = state_of(request)
    watch = state.metrics.watch()
    answers = await start
    first = asyncio.ensure_future(anext(answers, None))

    async def finish() -> None:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await answers.close()
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
    return EventStream(
        _frames(answers, first, writer, watch),
        ping_s=state.config.ping_s,
        write_timeout_s=state.config.write_timeout_s,
        finish=finish,
    )


async def _frames(
    answers: Answers,
    first: "asyncio.Future[AnswerDelta | None]",
    writer: ChatChunks | TextChunks,
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
    yield writer.usage(answers.usage) + DONE
