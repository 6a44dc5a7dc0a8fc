"""What a row of training data says: chats, completions, instructions, texts, and choices.

Rows come from outside and are checked here; what comes out is plain data that knows no model.
The forms are those that published data sets have.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from hyprstream.errors import InvalidRequestError
from hyprstream.train.fields import answer_key, first_key, text_at, weight_of
from hyprstream.train.messages import Message, Tool, chat_messages, chat_tools, shared_turns

Form = Literal["messages", "sharegpt", "alpaca", "completion", "preference", "text"]

FORMS: tuple[Form, ...] = get_args(Form)

_THUMBS: Mapping[object, bool] = {"up": True, "down": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Messages in OpenAI's form.

    Attributes:
        messages: The turns; arguments of tool calls are objects, as templates want them.
        tools: JSON schemas of what the assistant may call.
        begin: Answers of the assistant from this message on count.
        weight: How much each of their tokens counts.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    begin: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A text and how it goes on; only that counts."""

    prompt: str
    answer: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """A task, the text that it is about if there is one, and the answer, which counts."""

    instruction: str
    context: str
    answer: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text of which everything counts."""

    text: str
    weight: float = 1.0


Lesson = Chat | Completion | Instruction | Text
"""What can be learnt from as it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two answers to one prompt, of which one is better."""

    chosen: Lesson
    rejected: Lesson


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """An answer that somebody liked, or did not."""

    lesson: Lesson
    liked: bool


Record = Lesson | Preference | Rated


def parse_record(row: Mapping[str, object], form: Form | None = None) -> Record:
    """Read a row, in the form that its keys show or in the one that is named.

    Raises:
        InvalidRequestError: It is not of that form, or of no form that is known.
    """
    chosen = form or _detected(row)
    lesson = _PARSERS[chosen](row)
    if isinstance(lesson, Preference):
        return lesson
    liked = _liked(row)
    return lesson if liked is None else Rated(lesson=lesson, liked=liked)


def prompt_of(record: Record) -> str:
    """Return what a record is asked, as one text: the same question gives the same text."""
    match record:
        case Chat():
            return _told(record.messages[: _first_answer(record)])
        case Completion():
            return record.prompt
        case Instruction():
            return _joined(record.instruction, record.context)
        case Text():
            return record.text
        case Preference():
            return prompt_of(record.chosen)
        case Rated():
            return prompt_of(record.lesson)


def content_of(record: Record) -> str:
    """Return all that a record says, as one text: records that say the same are duplicates."""
    match record:
        case Chat():
            # Which answers count makes another record of the same chat.
            return _joined(_told(record.messages), _told(record.tools), str(record.begin))
        case Completion():
            return _joined(record.prompt, record.answer)
        case Instruction():
            return _joined(record.instruction, record.context, record.answer)
        case Text():
            return record.text
        case Preference():
            return _joined(content_of(record.chosen), content_of(record.rejected))
        case Rated():
            return _joined(content_of(record.lesson), str(record.liked))


def _detected(row: Mapping[str, object]) -> Form:
    if "chosen" in row and "rejected" in row:
        return "preference"
    marks: Mapping[str, Form] = {
        "messages": "messages",
        "conversations": "sharegpt",
        "instruction": "alpaca",
        "prompt": "completion",
        "question": "completion",
        "text": "text",
    }
    for key, form in marks.items():
        if key in row:
            return form
    raise InvalidRequestError(
        "a record has neither messages, conversations, instruction, prompt, question nor text",
        hint="Write one of the forms that the reference page of training shows.",
    )


def _chat(row: Mapping[str, object]) -> Chat:
    return Chat(
        messages=chat_messages(row.get("messages"), "messages"),
        tools=chat_tools(row.get("tools")),
        weight=weight_of(row),
    )


def _sharegpt(row: Mapping[str, object]) -> Chat:
    return Chat(
        messages=chat_messages(row.get("conversations"), "conversations", row.get("system")),
        tools=chat_tools(row.get("tools")),
        weight=weight_of(row),
    )


def _alpaca(row: Mapping[str, object]) -> Instruction:
    about = first_key(row, ("input", "context"), otherwise="input")
    return Instruction(
        instruction=text_at(row, "instruction"),
        context=text_at(row, about) if row.get(about) else "",
        answer=text_at(row, first_key(row, ("output", "response"), otherwise="output")),
        weight=weight_of(row),
    )


def _completion(row: Mapping[str, object]) -> Lesson:
    asked = first_key(row, ("prompt", "question"), otherwise="prompt")
    answered = answer_key(row)
    if isinstance(row.get(asked), list):
        before = chat_messages(row[asked], asked)
        return Chat(
            messages=(*before, *chat_messages(row.get(answered), answered)),
            tools=chat_tools(row.get("tools")),
            begin=len(before),
            weight=weight_of(row),
        )
    return Completion(
        prompt=text_at(row, asked), answer=text_at(row, answered), weight=weight_of(row)
    )


def _text(row: Mapping[str, object]) -> Text:
    return Text(text=text_at(row, "text"), weight=weight_of(row))


def _preference(row: Mapping[str, object]) -> Preference:
    weight, tools = weight_of(row), chat_tools(row.get("tools"))
    if not isinstance(row.get("chosen"), list):
        prompt = text_at(row, first_key(row, ("prompt", "question"), otherwise="prompt"))
        chosen, rejected = (
            Completion(prompt=prompt, answer=text_at(row, key), weight=weight)
            for key in ("chosen", "rejected")
        )
        return Preference(chosen=chosen, rejected=rejected)
    asked = row.get("prompt")
    # Whole chats may stand beside their prompt as a text; then they say it themselves.
    before = chat_messages(asked, "prompt") if isinstance(asked, list) else ()
    chats = [(*before, *chat_messages(row.get(key), key)) for key in ("chosen", "rejected")]
    begin = len(before) or shared_turns(*chats)
    if not begin:
        raise InvalidRequestError(
            "chosen and rejected begin with different messages",
            hint="Let both answer the same prompt.",
        )
    good, bad = (Chat(messages=c, tools=tools, begin=begin, weight=weight) for c in chats)
    return Preference(chosen=good, rejected=bad)


_PARSERS: Mapping[Form, Callable[[Mapping[str, object]], Lesson | Preference]] = MappingProxyType(
    {
        "messages": _chat,
        "sharegpt": _sharegpt,
        "alpaca": _alpaca,
        "completion": _completion,
        "preference": _preference,
        "text": _text,
    }
)


def _liked(row: Mapping[str, object]) -> bool | None:
    """Return what somebody thought of the answer; None if the row does not say."""
    if "thumbs" in row:
        thumbs = row["thumbs"]
        if thumbs is None:
            return None
        if not isinstance(thumbs, str) or thumbs not in _THUMBS:
            raise InvalidRequestError(
                f"thumbs is {ascii(thumbs)[:60]}", hint='Write "up" or "down", or leave it out.'
            )
        return _THUMBS[thumbs]
    label = row.get("label")
    return label if isinstance(label, bool) else None  # numbers are classes of something


def _first_answer(chat: Chat) -> int:
    answers = (
        number
        for number, message in enumerate(chat.messages)
        if number >= chat.begin and message.get("role") == "assistant"
    )
    return next(answers, len(chat.messages))


def _told(values: Sequence[Mapping[str, object]]) -> str:
    return json.dumps([_even(value) for value in values], sort_keys=True)


def _even(value: object) -> object:
    """Return plain data with white space as it is in prompts: written as JSON it is no space."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {key: _even(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_even(item) for item in value]
    return value


def _joined(*texts: str) -> str:
    return "\n\x00\n".join(texts)  # no person writes it, so no two lists are one text
