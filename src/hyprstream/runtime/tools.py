"""Tools that a model may call: what the prompt says of them, and what holds the answer to them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from hyprstream.engine.grammar import tool_call_grammar
from hyprstream.engine.request import SamplingParams
from hyprstream.errors import InvalidRequestError, UnsupportedError
from hyprstream.models.tool_calls import ToolCall, ToolCallReader
from hyprstream.runtime.model import Message, Model

__all__ = ["Choice", "ToolCall", "ToolCallReader", "ToolUse", "plain_messages"]

Choice = Literal["none", "auto", "required", "named"]

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What a caller wants of tools.

    Attributes:
        tools: Functions in OpenAI's form.
        choice: Never call one; let the model choose; call one or more; call that of `name`.
        name: The tool to call.
        parallel: Admit several calls, where calls are demanded.
    """

    tools: Tools = ()
    choice: Choice = "auto"
    name: str = ""
    parallel: bool = True

    @property
    def calls(self) -> bool:
        """Tell whether an answer may hold calls."""
        return bool(self.tools) and self.choice != "none"

    def applied(self, model: Model, params: SamplingParams) -> tuple[Tools | None, SamplingParams]:
        """Return what the prompt has to say of tools, and how to sample.

        Raises:
            UnsupportedError: The model has no way to call tools that is known here.
            InvalidRequestError: The tool to call is not there, or the answer is held to a
                grammar of its own.
        """
        if not self.calls:
            return None, params
        if not model.calls_tools:
            raise UnsupportedError(
                "the chat template of this model knows no tools",
                hint="Use a model that does, such as hf://Qwen/Qwen3-0.6B, or send no tools.",
            )
        if params.grammar is not None:
            raise InvalidRequestError(
                "the answer is to follow a format and may call tools as well",
                hint='Leave out one of the two, or set tool_choice to "none".',
            )
        if self.choice == "auto":
            return self.tools, params
        functions = {tool["function"]["name"]: tool["function"] for tool in self.tools}
        if self.choice == "named":
            if self.name not in functions:
                raise InvalidRequestError(
                    f"there is no tool {self.name[:80]!a}", hint="Choose one of those in tools."
                )
            functions = {self.name: functions[self.name]}
        schemas = {
            name: function.get("parameters") or {"type": "object"}
            for name, function in functions.items()
        }
        parallel = self.parallel and self.choice == "required"
        return self.tools, replace(params, grammar=tool_call_grammar(schemas, parallel=parallel))


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Write messages as templates expect them: arguments of calls as objects, not as text.

    Raises:
        InvalidRequestError: Arguments are no JSON object.
    """
    return [_plain(dict(message), n) for n, message in enumerate(messages)]


def _plain(message: dict[str, Any], number: int) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [
            _call(call, f"messages[{number}].tool_calls[{n}]") for n, call in enumerate(calls)
        ]
    return message


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        function["arguments"] = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        function["arguments"] = None
    if not isinstance(function["arguments"], dict):
        raise InvalidRequestError(
            f"{where}.function.arguments is no JSON object", hint="Send it as the model wrote it."
        )
    return {**call, "function": function}
