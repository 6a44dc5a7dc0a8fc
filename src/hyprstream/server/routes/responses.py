"""`/v1/responses`: OpenAI's Responses, as chats."""

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.server.access import Route
from hyprstream.server.response_events import ResponseEvents
from hyprstream.server.routes.answering import Answering, Form, answer_chat
from hyprstream.server.schemas.responses import ResponseRequest


async def respond(request: Request, body: ResponseRequest) -> Response:
    """Answer an input."""
    return await _respond(request, body, None)


async def adapter_respond(request: Request, lora: str, body: ResponseRequest) -> Response:
    """Answer an input with the adapter of the path; `model` changes nothing."""
    return await _respond(request, body, lora)


async def _respond(request: Request, body: ResponseRequest, lora: str | None) -> Response:
    def writer(answering: Answering) -> ResponseEvents:
        return ResponseEvents(
            answering.head, body, answering.texts, calls_tools=answering.calls_tools
        )

    form = Form(
        prefix="resp_",
        kind="response",
        whole=lambda answering: writer(answering).whole(answering.answers),
        writer=writer,
    )
    return await answer_chat(request, body.chat(), lora, form)


ROUTES = (
    Route(method="POST", path="/v1/responses", endpoint=respond, needs="inference"),
    Route(
        method="POST",
        path="/v1/inference/{lora:path}/responses",
        endpoint=adapter_respond,
        needs="inference",
    ),
)
