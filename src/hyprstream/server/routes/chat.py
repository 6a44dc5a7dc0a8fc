"""`/v1/chat/completions`, for a model by its name or by its path."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.runtime.text import Completion
from hyprstream.runtime.tools import ToolCallReader
from hyprstream.server.access import Route
from hyprstream.server.chunks import ChatChunks, call_record, chat_logprobs
from hyprstream.server.routes.answering import Answering, Form, answer_chat, choices_record
from hyprstream.server.schemas.chat import ChatRequest


async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a chat."""
    return await _chat(request, body, None)


async def adapter_chat(request: Request, lora: str, body: ChatRequest) -> Response:
    """Answer a chat with the adapter of the path; `model` changes nothing."""
    return await _chat(request, body, lora)


async def _chat(request: Request, body: ChatRequest, lora: str | None) -> Response:
    def whole(answering: Answering) -> dict[str, Any]:
        choices = [
            _choice(n, completion, answering, logprobs=bool(body.logprobs))
            for n, completion in enumerate(answering.answers.completions)
        ]
        return choices_record(answering, choices)

    def writer(answering: Answering) -> ChatChunks:
        return ChatChunks(
            answering.head,
            body.n,
            answering.texts,
            calls_tools=answering.calls_tools,
            includes_usage=body.includes_usage,
        )

    form = Form(prefix="chatcmpl-", kind="chat.completion", whole=whole, writer=writer)
    return await answer_chat(request, body, lora, form)


def _choice(
    number: int, completion: Completion, answering: Answering, *, logprobs: bool
) -> dict[str, Any]:
    content: str | None = completion.text
    calls = []
    if answering.calls_tools:
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
        "logprobs": chat_logprobs(completion.tokens, answering.texts) if logprobs else None,
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
