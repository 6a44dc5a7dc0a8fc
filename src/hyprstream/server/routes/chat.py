"""`/v1/chat/completions`, for a model by its name or by its path."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.runtime.text import Completion
from hyprstream.runtime.text_service import TextService
from hyprstream.runtime.tools import ToolCallReader, plain_messages
from hyprstream.server.access import Route
from hyprstream.server.chunks import ChatChunks, call_record, chat_logprobs
from hyprstream.server.routes.answering import answer_stream, answer_whole, head_of
from hyprstream.server.schemas.chat import ChatRequest
from hyprstream.server.state import caller_of, state_of

_KIND = "chat.completion"


async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a chat."""
    return await _chat(request, body, None)


async def adapter_chat(request: Request, lora: str, body: ChatRequest) -> Response:
    """Answer a chat with the adapter of the path; `model` changes nothing."""
    return await _chat(request, body, lora)


async def _chat(request: Request, body: ChatRequest, lora: str | None) -> Response:
    state = state_of(request)
    runtime = state.runtime
    caller = caller_of(request, "chatcmpl", body.model, lora, learn=body.learn, user=body.spoken_by)
    use = body.tool_use(state.config)
    tools, params = use.applied(runtime.model, body.sampling(state.config))
    variables = body.chat_template_kwargs
    start = runtime.text.chat(
        plain_messages([message.plain() for message in body.messages]),
        params,
        caller,
        num_answers=body.n,
        tools=tools,
        variables=variables.model_dump(exclude_none=True) if variables else None,
    )
    if body.stream:
        return await answer_stream(
            request,
            start,
            lambda answers: ChatChunks(
                head_of(state, caller, _KIND, answers),
                body.n,
                runtime.text,
                calls_tools=use.calls,
                includes_usage=body.includes_usage,
            ),
        )
    return await answer_whole(
        request,
        start,
        _KIND,
        caller,
        lambda completions: _choices(
            completions, runtime.text, calls_tools=use.calls, logprobs=bool(body.logprobs)
        ),
    )


def _choices(
    completions: Sequence[Completion], texts: TextService, *, calls_tools: bool, logprobs: bool
) -> list[dict[str, Any]]:
    return [
        _choice(n, completion, texts, calls_tools=calls_tools, logprobs=logprobs)
        for n, completion in enumerate(completions)
    ]


def _choice(
    number: int, completion: Completion, texts: TextService, *, calls_tools: bool, logprobs: bool
) -> dict[str, Any]:
    content: str | None = completion.text
    calls = []
    if calls_tools:
        reader = ToolCallReader()
        parts = reader.push(completion.text) + reader.finish()
        calls = [call_record(part) for part in parts if not isinstance(part, str)]
        said = "".join(part for part in parts if isinstance(part, str))
        content = said or (None if calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return {
        "index": number,
        "message": message,
        "logprobs": chat_logprobs(completion.tokens, texts) if logprobs else None,
        "finish_reason": "tool_calls" if calls else completion.finish_reason,
    }


ROUTES = (
    Route(method="POST", path="/v1/chat/completions", endpoint=chat, needs="inference"),
    Route(
        method="POST",
        path="/v1/inference/{lora:path}/chat/completions",
        endpoint=adapter_chat,
        needs="inference",
    ),
)
