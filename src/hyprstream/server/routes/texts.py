"""`/v1/completions`, `/v1/embeddings`, `/tokenize` and `/detokenize`."""

import base64
import struct
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.errors import InvalidRequestError
from hyprstream.runtime.answers import Answers
from hyprstream.runtime.text import Completion
from hyprstream.runtime.text_service import TextService
from hyprstream.runtime.tools import plain_messages
from hyprstream.server.access import Route
from hyprstream.server.chunks import TextChunks, text_logprobs
from hyprstream.server.errors import ApiError
from hyprstream.server.routes.answering import (
    Answering,
    answer_stream,
    answer_whole,
    choices_record,
    head_of,
)
from hyprstream.server.schemas.texts import (
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from hyprstream.server.sse import encode
from hyprstream.server.state import caller_of, serving, state_of, unless_gone

_KIND = "text_completion"


async def complete(request: Request, body: CompletionRequest) -> Response:
    """Continue texts."""
    return await _complete(request, body, None)


async def adapter_complete(request: Request, lora: str, body: CompletionRequest) -> Response:
    """Continue texts with the adapter of the path; `model` changes nothing."""
    return await _complete(request, body, lora)


async def embed(request: Request, body: EmbeddingRequest) -> Response:
    """Make vectors of texts."""
    return await _embed(request, body, None)


async def adapter_embed(request: Request, lora: str, body: EmbeddingRequest) -> Response:
    """Make vectors of texts with the adapter of the path; `model` changes nothing."""
    return await _embed(request, body, lora)


async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """Turn a text, or a chat, into the tokens that the model would be given."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError(
            "there is not one of prompt and messages", hint="Send one of the two."
        )
    async with serving(request, body.model, None) as base:
        texts = base.runtime.text
        if body.prompt is not None:
            if body.tools:
                raise InvalidRequestError("a prompt has no tools", hint="Send messages instead.")
            tokens = await texts.tokens(body.prompt, add_special=body.add_special_tokens)
        else:
            tokens = await texts.chat_tokens(
                plain_messages([message.plain() for message in body.messages or []]),
                tools=[tool.model_dump(exclude_none=True) for tool in body.tools or []] or None,
                add_generation_prompt=body.add_generation_prompt,
            )
        context = base.runtime.model.context_length
    return _json({"count": len(tokens), "max_model_len": context, "tokens": tokens})


async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    """Turn tokens into text."""
    async with serving(request, body.model, None) as base:
        return _json({"prompt": await base.runtime.text.text(body.tokens)})


async def _complete(request: Request, body: CompletionRequest, lora: str | None) -> Response:
    caller = caller_of(
        request,
        "cmpl-",
        body.model,
        lora,
        learn=body.learn,
        user=body.spoken_by,
        adapt=body.adapt,
    )
    params = body.sampling(state_of(request).config)
    async with AsyncExitStack() as held:
        base = await held.enter_async_context(serving(request, body.model, lora))
        texts = base.runtime.text
        start = texts.complete(body.prompts, params, caller, num_answers=body.n)

        def answering(answers: Answers) -> Answering:
            head = head_of(base, caller, _KIND, answers)
            return Answering(head=head, answers=answers, texts=texts)

        if body.stream:
            return await answer_stream(
                request,
                start,
                lambda answers: TextChunks(
                    answering(answers).head,
                    body.n * len(body.prompts),
                    texts,
                    includes_usage=body.includes_usage,
                ),
                held,
            )

        def whole(answers: Answers) -> dict[str, Any]:
            choices = _choices(answers.completions, texts, logprobs=body.logprobs is not None)
            return choices_record(answering(answers), choices)

        return await answer_whole(request, start, whole)


def _choices(
    completions: Sequence[Completion], texts: TextService, *, logprobs: bool
) -> list[dict[str, Any]]:
    return [
        {
            "index": n,
            "text": completion.text,
            "logprobs": text_logprobs(completion.tokens, texts, 0) if logprobs else None,
            "finish_reason": completion.finish_reason,
        }
        for n, completion in enumerate(completions)
    ]


async def _embed(request: Request, body: EmbeddingRequest, lora: str | None) -> Response:
    caller = caller_of(request, "embd-", body.model, lora, learn=False)
    async with serving(request, body.model, lora) as base:
        width = base.runtime.model.info.width
        if body.dimensions not in (None, width):
            raise ApiError(
                400,
                f"vectors of this model have {width} numbers",
                code="unsupported_parameter",
                param="dimensions",
            )
        work = base.runtime.text.embed(body.texts, caller, pooling=body.pooling)
        embedded = await unless_gone(request, work)
        name = base.called(caller.adapter)
    state_of(request).metrics.tokens(embedded.num_tokens, 0)
    packed = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": n, "embedding": _packed(vector) if packed else vector}
        for n, vector in enumerate(embedded.vectors)
    ]
    usage = {"prompt_tokens": embedded.num_tokens, "total_tokens": embedded.num_tokens}
    return _json({"object": "list", "data": data, "model": name, "usage": usage})


def _packed(vector: Sequence[float]) -> str:
    """Write a vector as OpenAI does: float32, little endian, in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _json(data: object) -> Response:
    return Response(encode(data), media_type="application/json")


ROUTES = (
    Route(method="POST", path="/v1/completions", endpoint=complete, needs="inference"),
    Route(
        method="POST",
        path="/v1/inference/{lora:path}/completions",
        endpoint=adapter_complete,
        needs="inference",
    ),
    Route(method="POST", path="/v1/embeddings", endpoint=embed, needs="inference"),
    Route(
        method="POST",
        path="/v1/inference/{lora:path}/embeddings",
        endpoint=adapter_embed,
        needs="inference",
    ),
    Route(method="POST", path="/tokenize", endpoint=tokenize, needs="inference"),
    Route(method="POST", path="/detokenize", endpoint=detokenize, needs="inference"),
)
