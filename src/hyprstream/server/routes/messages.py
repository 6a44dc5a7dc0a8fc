"""`/v1/messages`: Anthropic's protocol, as chats.

Anthropic's clients write `/v1/messages` behind their base address, so that an adapter's path has
it both ways.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyprstream.runtime.tools import plain_messages
from hyprstream.server.access import Route
from hyprstream.server.message_events import MessageEvents
from hyprstream.server.routes.answering import Answering, Form, answer_chat
from hyprstream.server.schemas.messages import Conversation, MessageRequest
from hyprstream.server.state import caller_of, serving, state_of


async def message(request: Request, body: MessageRequest) -> Response:
    """Answer a conversation."""
    return await _message(request, body, None)


async def adapter_message(request: Request, lora: str, body: MessageRequest) -> Response:
    """Answer a conversation with the adapter of the path; `model` changes nothing."""
    return await _message(request, body, lora)


async def count_tokens(request: Request, body: Conversation) -> Response:
    """Count the tokens that the model would be given."""
    return await _count(request, body, None)


async def adapter_count_tokens(request: Request, lora: str, body: Conversation) -> Response:
    """Count the tokens that the model would be given with the adapter of the path."""
    return await _count(request, body, lora)


async def _message(request: Request, body: MessageRequest, lora: str | None) -> Response:
    def writer(answering: Answering) -> MessageEvents:
        return MessageEvents(
            answering.head,
            answering.answers,
            max_tokens=body.max_tokens,
            calls_tools=answering.calls_tools,
        )

    form = Form(
        prefix="msg_",
        kind="message",
        whole=lambda answering: writer(answering).whole(answering.answers),
        writer=writer,
    )
    return await answer_chat(request, body.chat(), lora, form)


async def _count(request: Request, body: Conversation, lora: str | None) -> Response:
    caller_of(request, "msg_", body.model, lora, learn=False)  # refuses what is no model
    config = state_of(request).config
    chat = body.chat()
    use = chat.tool_use(config)
    variables = chat.chat_template_kwargs
    async with serving(request, body.model, lora) as base:
        tools, _ = use.applied(base.runtime.model, chat.sampling(config))
        tokens = await base.runtime.text.chat_tokens(
            plain_messages([message.plain() for message in chat.messages]),
            tools=tools,
            **(variables.model_dump(exclude_none=True) if variables else {}),
        )
    return JSONResponse({"input_tokens": len(tokens)})


ROUTES = tuple(
    Route(
        method="POST",
        path=f"{prefix}{path}",
        endpoint=endpoint,
        needs="inference",
        error_form="anthropic",
    )
    for path, plain, adapted in (
        ("/messages", message, adapter_message),
        ("/messages/count_tokens", count_tokens, adapter_count_tokens),
    )
    for prefix, endpoint in (
        ("/v1", plain),
        ("/v1/inference/{lora:path}/v1", adapted),
        ("/v1/inference/{lora:path}", adapted),
    )
)
