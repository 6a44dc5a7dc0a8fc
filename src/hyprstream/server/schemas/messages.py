"""Bodies of `/v1/messages`, Anthropic's protocol, and the chats that they mean."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError
from typing_extensions import override

from hyprstream.errors import InvalidRequestError
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
    ShortText,
    Strict,
    kind_of,
    only,
    refusal,
)

_TEXT_ALONE = (
    "models here read text alone: blocks are text, tool_use and tool_result, and images, "
    "documents and thinking are refused"
)
_TOOLS = "there are no tools of the server here: tools are functions of the caller"
_HELPERS = "there are no tools, files or servers behind this one"

Marker = dict[str, Any] | None
BlockId = Annotated[str, Field(max_length=256)]


class TextBlock(Strict):
    """A text."""

    type: Literal["text"]
    text: str
    cache_control: Marker = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


def _is_text(block: Any) -> Any:
    if isinstance(block, dict) and block.get("type") != "text":
        raise PydanticCustomError(REFUSED, "{why}", {"why": _TEXT_ALONE})
    return block


TextAlone = Annotated[TextBlock, BeforeValidator(_is_text)]


class ToolUseBlock(Strict):
    """The call of a tool, as an answer had it."""

    type: Literal["tool_use"]
    id: BlockId
    name: Annotated[str, Field(max_length=256)]
    input: dict[str, Any]
    cache_control: Marker = None
    caller: None = None
    toolset_name: None = None


class ToolResultBlock(Strict):
    """What the tool returned."""

    type: Literal["tool_result"]
    tool_use_id: BlockId
    content: str | Annotated[list[TextAlone], Field(max_length=256)] | None = None
    is_error: bool | None = None
    cache_control: Marker = None


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")],
    Discriminator(kind_of, custom_error_type=REFUSED, custom_error_message=_TEXT_ALONE),
]


class Turn(Strict):
    """What one of the two says."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[Block], Field(max_length=256)]

    @property
    def blocks(self) -> Sequence[TextBlock | ToolUseBlock | ToolResultBlock]:
        """The content, as blocks in every case."""
        if isinstance(self.content, str):
            return [TextBlock(type="text", text=self.content)]
        return self.content


class ClientTool(Strict):
    """A tool of the caller."""

    type: Annotated[Literal["custom"] | None, only("custom", why=_TOOLS)] = None
    name: ToolName
    description: Annotated[str, Field(max_length=8192)] | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Marker = None

    @property
    def plain(self) -> dict[str, Any]:
        """The same as chats have it."""
        function = self.model_dump(include={"name", "description", "strict"}, exclude_none=True)
        return {"type": "function", "function": {**function, "parameters": self.input_schema}}


class ToolChoice(Strict):
    """Whether and what to call."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool = False

    @property
    def plain(self) -> str | dict[str, Any]:
        """The same as chats have it.

        Raises:
            InvalidRequestError: A name is missing, or too much.
        """
        if (self.type == "tool") != (self.name is not None):
            raise InvalidRequestError(
                f"tool_choice is {self.type} and names {'no' if self.name is None else 'a'} tool",
                hint='Name one, and no other time: {"type": "tool", "name": ...}.',
            )
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class JsonFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Strict):
    """What the answer is to be."""

    format: JsonFormat | None = None
    effort: Annotated[Any, refusal("chat_template_kwargs says how a model reasons")] = None


class NoThinking(Strict):
    """The model is not to think in blocks of their own, as models here never do."""

    type: Annotated[
        Literal["disabled"], only("disabled", why="thoughts do not come in blocks of their own")
    ]


class Conversation(Strict):
    """What was said, and what may be called."""

    model: Annotated[str, Field(max_length=512)] | None = None
    """The base model, or an adapter: NAME, NAME@VERSION, NAME:TAG, BASE:NAME."""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Annotated[list[TextAlone], Field(max_length=256)] | None = None
    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: NoThinking | None = None
    chat_template_kwargs: TemplateVariables | None = None

    # Accepted and of no effect: see IGNORED.
    cache_control: Marker = None

    # Known, and refused.
    context_management: Annotated[Any, refusal("conversations are answered as they are sent")] = (
        None
    )
    mcp_servers: Annotated[Any, refusal(_HELPERS)] = None

    def chat(self) -> ChatRequest:
        """Return the chat that is meant.

        Raises:
            InvalidRequestError: It is none.
            ApiError: It cannot be a chat.
        """
        return as_chat(self._fields())

    def _fields(self) -> dict[str, Any]:
        choice = self.tool_choice
        wanted = self.output_config.format if self.output_config else None
        schema = {"name": "answer", "schema": wanted.schema_} if wanted else None
        return {
            "model": self.model,
            "messages": [*self._system(), *self._said()],
            "tools": [tool.plain for tool in self.tools] if self.tools else None,
            "tool_choice": choice.plain if choice else None,
            "parallel_tool_calls": not choice.disable_parallel_tool_use if choice else None,
            "response_format": {"type": "json_schema", "json_schema": schema} if schema else None,
            "chat_template_kwargs": self.chat_template_kwargs,
        }

    def _system(self) -> Iterable[Message]:
        if self.system:
            yield Message(role="system", content=_content(self.system))

    def _said(self) -> Iterable[Message]:
        """Give the messages; turns of one and the same in a row are one turn."""
        if self.messages[-1].role != "user":
            raise InvalidRequestError(
                "the last message is one of the assistant",
                hint="End with one of the user: answers are not continued.",
            )
        role, blocks = self.messages[0].role, list[TextBlock | ToolUseBlock | ToolResultBlock]()
        for turn in self.messages:
            if turn.role != role:
                yield from _spoken(role, blocks)
                role, blocks = turn.role, []
            blocks += turn.blocks
        yield from _spoken(role, blocks)


class Metadata(Strict):
    """Who asks."""

    user_id: Annotated[str, Field(max_length=512)] | None = None
    """Whose words it holds: as `user` of chats."""


class MessageRequest(Conversation, Extensions):
    """What is to be answered, and how."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool = False
    stop_sequences: Annotated[list[ShortText], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None

    metadata: Metadata | None = None

    # Accepted and of no effect: see IGNORED.
    service_tier: str | None = None

    # Known, and refused.
    container: Annotated[Any, refusal(_HELPERS)] = None

    @override
    def _fields(self) -> dict[str, Any]:
        return {
            **super()._fields(),
            **self.extensions,
            "max_tokens": self.max_tokens,
            "stream": self.stream,
            "user": self.metadata.user_id if self.metadata else None,
            "stop": self.stop_sequences or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }


def _spoken(
    role: Literal["user", "assistant"],
    blocks: Sequence[TextBlock | ToolUseBlock | ToolResultBlock],
) -> Iterable[Message]:
    """Turn the blocks of one turn into messages: what tools returned comes first.

    Raises:
        InvalidRequestError: The user calls a tool, or the assistant returns what one said.
    """
    wrong = ToolUseBlock if role == "user" else ToolResultBlock
    if any(isinstance(block, wrong) for block in blocks):
        raise InvalidRequestError(
            f"a message of the {role} has a block of the other's",
            hint="The assistant has tool_use, the user tool_result.",
        )
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            result = _content(block.content or "")
            yield Message(role="tool", content=result, tool_call_id=block.tool_use_id)
    calls = [
        Call(
            id=block.id,
            function=CalledFunction(name=block.name, arguments=json.dumps(block.input)),
        )
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    if texts or calls or not blocks:
        content = _content(texts) if texts or not calls else None
        yield Message(role=role, content=content, tool_calls=calls or None)


def _content(content: str | Sequence[TextBlock]) -> str | list[TextPart]:
    if isinstance(content, str):
        return content
    if len(content) == 1:
        return content[0].text
    return [TextPart(type="text", text=block.text) for block in content]
