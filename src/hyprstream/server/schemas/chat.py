"""Bodies of `/v1/chat/completions`."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from hyprstream.errors import InvalidRequestError
from hyprstream.runtime import SamplingParams
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.tools import ToolUse
from hyprstream.server.errors import validation_error
from hyprstream.server.schemas.sampling import (
    Format,
    Sampling,
    Strict,
    check_schema_size,
    grammar_of,
)

MAX_MESSAGES = 4096
MAX_TOOLS = 128

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Strict):
    """A part of a message; models here read text only."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """What a model called."""

    name: Annotated[str, Field(max_length=256)]
    arguments: str


class Call(Strict):
    """A call of a tool, as an answer had it."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[Call], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None

    # What answers of other servers carry, so that they can be sent back as they came: null.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, Any]:
        """Return what the chat template is given."""
        sent = self.model_dump(
            exclude_none=True, exclude={"refusal", "audio", "function_call", "annotations"}
        )
        return {"content": None, **sent} if self.role == "assistant" else sent


class Function(Strict):
    """A function that the model may call."""

    name: ToolName
    description: Annotated[str, Field(max_length=8192)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Applied where a call is demanded: its arguments then fulfil the schema."""


class Tool(Strict):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """The function to call."""

    name: ToolName


class NamedTool(Strict):
    """The tool to call."""

    type: Literal["function"]
    function: NamedFunction


class TemplateVariables(Strict):
    """Further variables of chat templates. No others: some of ours would lend users a pen.

    With `parse_special_in_content`, for one, they could write control tokens.
    """

    enable_thinking: bool | None = None
    reasoning_effort: Literal["low", "medium", "high"] | None = None


class ChatRequest(Sampling):
    """A chat, and how it is to be answered."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    chat_template_kwargs: TemplateVariables | None = None

    def sampling(self, config: ServerConfig) -> SamplingParams:
        """Return how to sample.

        Raises:
            InvalidRequestError: Fields are out of range, or contradict each other.
        """
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise InvalidRequestError(
                "max_tokens and max_completion_tokens differ", hint="Send one of the two."
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs is given without logprobs", hint="Set logprobs to true."
            )
        return self.params(
            config,
            max_tokens=next(iter(both), None),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            grammar=grammar_of(self.response_format, config),
        )

    def tool_use(self, config: ServerConfig) -> ToolUse:
        """Return what is wanted of tools.

        Raises:
            InvalidRequestError: A tool is to be called, and there are none; or two have one name.
        """
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools or []]
        names = {tool["function"]["name"] for tool in tools}
        if len(names) < len(tools):
            raise InvalidRequestError("two tools have one name", hint="Give each its own.")
        choice = self.tool_choice or "auto"
        if not tools and choice not in ("auto", "none"):
            raise InvalidRequestError(
                "tool_choice demands a call, and there are no tools", hint="Send tools."
            )
        check_schema_size(len(json.dumps(tools)), config)
        parallel = self.parallel_tool_calls is not False
        if isinstance(choice, NamedTool):
            return ToolUse(
                tools=tools, choice="named", name=choice.function.name, parallel=parallel
            )
        return ToolUse(tools=tools, choice=choice, parallel=parallel)


def as_chat(fields: Mapping[str, Any]) -> ChatRequest:
    """Make a chat of what another protocol asks for.

    Raises:
        ApiError: As a chat it cannot be.
    """
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise validation_error(error.errors()) from None
