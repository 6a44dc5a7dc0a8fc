"""Bodies of `/v1/responses`, and the chats that they mean."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hyprstream.server.errors import REFUSED
from hyprstream.server.schemas.chat import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Call,
    CalledFunction,
    ChatRequest,
    Message,
    TemplateVariables,
    TextPart,
    ToolName,
    as_chat,
)
from hyprstream.server.schemas.sampling import (
    Extensions,
    ObjectFormat,
    StreamOptions,
    Strict,
    TextFormat,
    kind_of,
    only,
    refusal,
)

LOGPROBS = "message.output_text.logprobs"

_STORED = refusal("answers are kept nowhere: send what was said before in input")
_TEXT_ALONE = "models here read text alone: parts are input_text and output_text"
_FUNCTIONS_ALONE = "there are no built-in tools here: tools are functions of the caller"

Status = Literal["in_progress", "completed", "incomplete"]
ItemId = Annotated[str, Field(max_length=256)]


class ResponsePart(Strict):
    """A text within a message."""

    type: Annotated[
        Literal["input_text", "output_text"], only("input_text", "output_text", why=_TEXT_ALONE)
    ]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None
    """Ignored: of an answer that is sent back."""


class _Item(Strict):
    """What items have in common; all of it as answers had it, and of no effect."""

    id: ItemId | None = None
    status: Status | None = None


class MessageItem(_Item):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[ResponsePart], Field(max_length=256)]
    phase: None = None


class CallItem(_Item):
    """The call of a function, as an answer had it."""

    type: Literal["function_call"]
    call_id: ItemId
    name: Annotated[str, Field(max_length=256)]
    arguments: str
    async_: None = None
    caller: None = None
    namespace: None = None


class OutputItem(_Item):
    """What the function returned."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: str | Annotated[list[ResponsePart], Field(max_length=256)]


def _kind(item: object) -> str | None:
    """Return what an item is; one that does not say so is a message."""
    if isinstance(item, Mapping) and "type" not in item:
        return "message"
    return kind_of(item)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type=REFUSED,
        custom_error_message="items are message, function_call and function_call_output: "
        "nothing is stored here to refer to, and there are no built-in tools",
    ),
]


class SchemaText(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None
    """Ignored: a schema is always enforced."""


class TextOptions(Strict):
    """What the text of the answer is to be."""

    format: (
        Annotated[TextFormat | ObjectFormat | SchemaText, Field(discriminator="type")] | None
    ) = None
    verbosity: Literal["medium"] | None = None


class FunctionTool(Strict):
    """A function that the model may call."""

    type: Annotated[Literal["function"], only("function", why=_FUNCTIONS_ALONE)]
    name: ToolName
    description: Annotated[str, Field(max_length=8192)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def plain(self) -> dict[str, Any]:
        """The same as chats have it."""
        function = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": function}


class ChosenFunction(Strict):
    """The function to call."""

    type: Annotated[Literal["function"], only("function", why=_FUNCTIONS_ALONE)]
    name: ToolName


class ResponseRequest(Extensions):
    """What is to be answered, and how."""

    model: Annotated[str, Field(max_length=512)] | None = None
    """The base model, or an adapter: NAME, NAME@VERSION, NAME:TAG, BASE:NAME."""
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Comes back with the answer."""
    chat_template_kwargs: TemplateVariables | None = None

    # Known, and refused.
    background: Annotated[Any, refusal("answers are given at once: leave it out")] = None
    conversation: Annotated[Any, _STORED] = None
    previous_response_id: Annotated[Any, _STORED] = None
    prompt: Annotated[Any, _STORED] = None
    store: Annotated[bool | None, _STORED] = None
    max_tool_calls: Annotated[Any, refusal(_FUNCTIONS_ALONE)] = None
    reasoning: Annotated[Any, refusal("chat_template_kwargs says how a model reasons")] = None
    truncation: Literal["disabled"] | None = None

    # Accepted and of no effect: see IGNORED.
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None

    # Whose words it holds: as for chats.
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Tell whether log probabilities are wanted."""
        return bool(self.include) or self.top_logprobs is not None

    def chat(self) -> ChatRequest:
        """Return the chat that is meant.

        Raises:
            ApiError: It cannot be.
        """
        options = self.stream_options if self.stream else None
        chat = {
            **self.extensions,
            "model": self.model,
            "messages": self._messages(),
            "stream": bool(self.stream),
            "stream_options": options,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "response_format": self._format(),
            "tools": [tool.plain for tool in self.tools] if self.tools else None,
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": self.wants_logprobs,
            "top_logprobs": self.top_logprobs,
            "chat_template_kwargs": self.chat_template_kwargs,
            "user": self.user,
            "safety_identifier": self.safety_identifier,
        }
        return as_chat(chat)

    def _messages(self) -> list[Message]:
        messages = []
        if self.instructions is not None:
            messages.append(Message(role="system", content=self.instructions))
        if isinstance(self.input, str):
            return [*messages, Message(role="user", content=self.input)]
        for item in self.input:
            if isinstance(item, CallItem):
                call = _call(item)
                last = messages[-1] if messages else None
                if last is not None and last.role == "assistant":  # one message says and calls
                    last.tool_calls = [*(last.tool_calls or []), call]
                else:
                    messages.append(Message(role="assistant", tool_calls=[call]))
            elif isinstance(item, OutputItem):
                content = _content(item.output)
                messages.append(Message(role="tool", content=content, tool_call_id=item.call_id))
            else:
                messages.append(Message(role=item.role, content=_content(item.content)))
        return messages

    def _format(self) -> dict[str, Any] | None:
        wanted = self.text.format if self.text else None
        if isinstance(wanted, SchemaText):
            schema = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
            return {"type": "json_schema", "json_schema": schema}
        return wanted.model_dump() if wanted else None


def _call(item: CallItem) -> Call:
    return Call(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))


def _content(content: str | list[ResponsePart]) -> str | list[TextPart]:
    if isinstance(content, str):
        return content
    return [TextPart(type="text", text=part.text) for part in content]


def _choice(choice: str | ChosenFunction | None) -> str | dict[str, Any] | None:
    if isinstance(choice, ChosenFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return choice
