"""Messages and tools of rows, in OpenAI's form or ShareGPT's, as chat templates want them."""

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NoReturn

from hyprstream.errors import InvalidRequestError

MAX_MESSAGES = 256
MAX_TOOLS = 256

Message = Mapping[str, object]
Tool = Mapping[str, object]

_SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def chat_messages(value: object, key: str, system: object = None) -> tuple[Message, ...]:
    """Return the messages that a row holds, whatever names it gives to speakers and texts.

    Args:
        value: What the row has.
        key: Under this key.
        system: A text to begin with, which ShareGPT rows have beside the turns.

    Raises:
        InvalidRequestError: They are no messages.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise InvalidRequestError(
            f"{key} is no list of 1 to {MAX_MESSAGES}", hint="Split longer chats."
        )
    messages = [_message(message, f"{key}[{number}]") for number, message in enumerate(value)]
    if isinstance(system, str) and system and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return tuple(messages)


def chat_tools(value: object) -> tuple[Tool, ...]:
    """Return the tools of a row; a list, or the JSON text of one.

    Raises:
        InvalidRequestError: They are no list of objects.
    """
    if value is None or value == "":
        return ()
    tools = _parsed(value, "tools") if isinstance(value, str) else value
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise InvalidRequestError(
            f"tools is no list of at most {MAX_TOOLS}", hint="Give the JSON schemas of tools."
        )
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InvalidRequestError(
                f"tools[{number}] is no object", hint="Give the JSON schemas of tools."
            )
    return tuple(_without_nothing(tool) for tool in tools)


def shared_turns(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Count the messages with which two chats begin alike, answers at their end left out."""
    alike = list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return min(len(alike), len(one) - 1, len(other) - 1)


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(
            f"{where} is no object", hint="A message has a role and a content."
        )
    message = _without_nothing(value)
    if "from" in message and "role" not in message:
        message = _of_sharegpt(message, where)
    if "role" not in message:
        raise InvalidRequestError(f"{where}.role is missing", hint="Say who speaks.")
    message.setdefault("content", None)  # which only the assistant may leave out
    if message.get("tool_calls"):
        message["tool_calls"] = _calls(message["tool_calls"], f"{where}.tool_calls")
    return message


def _of_sharegpt(message: Mapping[str, object], where: str) -> dict[str, object]:
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
        raise InvalidRequestError(
            f"{where}.from is {ascii(speaker)[:60]}",
            hint=f"Speakers: {', '.join(_SHAREGPT_ROLES)}.",
        )
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {**others, "role": _SHAREGPT_ROLES[speaker], "content": message.get("value")}


def _calls(value: object, where: str) -> list[object]:
    """Return tool calls with arguments as objects: templates write them as JSON themselves."""
    if not isinstance(value, list) or not all(isinstance(call, Mapping) for call in value):
        raise InvalidRequestError(f"{where} is no list of objects", hint="Give one per call.")
    calls: list[object] = []
    for number, call in enumerate(value):
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                f"{where}[{number}] names no function",
                hint='Write {"type": "function", "function": {"name": ..., "arguments": ...}}.',
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", f"{where}[{number}].arguments")
        others = {key: item for key, item in call.items() if key not in ("name", "arguments")}
        named = {**function, "arguments": arguments}
        calls.append({**others, "type": "function", "function": named})
    return calls


def _parsed(text: str, where: str) -> object:
    try:
        value: object = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"{where} is no JSON: {error}", hint="Write it as JSON, or as an object."
        ) from error
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _without_nothing(value: Mapping[str, object]) -> dict[str, object]:
    """Leave out what is null: columns of a table have every field in every row."""
    return {str(key): item for key, item in value.items() if item is not None}
