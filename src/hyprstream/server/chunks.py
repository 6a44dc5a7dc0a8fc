"""Answers as OpenAI writes them: whole, and piece by piece.

What is the same in all chunks of an answer is written once; a piece of text costs one call of
`json.dumps` and the joining of four strings.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hyprstream.runtime.answers import AnswerDelta, Answers
from hyprstream.runtime.fitting_request import Fitted
from hyprstream.runtime.text import TokenText, Usage
from hyprstream.runtime.text_service import TextService
from hyprstream.runtime.tools import ToolCall, ToolCallReader
from hyprstream.server.errors import ApiError
from hyprstream.server.sse import DONE, PING, encode, error_frame, event

_MARK = "\x00"  # no model has a name with this in it
_QUOTE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What all chunks of an answer have in common.

    Attributes:
        id: Of the answer.
        kind: `chat.completion` or `text_completion`.
        created: When, in seconds since 1970.
        model: What was asked for.
        fingerprint: Which version answers.
        fitted: How that was made, if it was for this request alone.
    """

    id: str
    kind: str
    created: int
    model: str
    fingerprint: str
    fitted: Fitted | None = None

    def record(self, *, is_chunk: bool = False) -> dict[str, Any]:
        """Write it as the beginning of a record."""
        suffix = ".chunk" if is_chunk and self.kind == "chat.completion" else ""
        return {
            "id": self.id,
            "object": self.kind + suffix,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            **({} if self.fitted is None else {"adapted": fitted_record(self.fitted)}),
        }


def fitted_record(fitted: Fitted) -> dict[str, Any]:
    """Write what steps on the prompt came to."""
    return {
        "steps": fitted.steps,
        "prompt_tokens": fitted.num_tokens,
        "loss_before": round(fitted.loss_before, 4),
        "loss_after": round(fitted.loss_after, 4),
        "kept": fitted.kept,
    }


class Writer(Protocol):
    """Writes an answer as frames, in the way of a protocol."""

    @property
    def ping(self) -> bytes:
        """What breaks a silence."""
        ...

    def begin(self) -> bytes:
        """Write what comes before the first piece."""
        ...

    def piece(self, delta: AnswerDelta) -> bytes:
        """Write what a piece adds, which may be nothing."""
        ...

    def end(self, answers: Answers) -> bytes:
        """Write what comes after the last one."""
        ...

    def failed(self, error: ApiError) -> bytes:
        """Write an error as the end of the stream."""
        ...


class Pieces:
    """Takes one answer apart: text, and calls of tools.

    Args:
        calls_tools: Look for calls; without them all is text.
    """

    def __init__(self, *, calls_tools: bool) -> None:
        self._reader = ToolCallReader() if calls_tools else None

    def push(self, delta: AnswerDelta) -> list[str | ToolCall]:
        """Return what is certain with this piece."""
        if self._reader is None:
            return [delta.text] if delta.text else []
        parts = self._reader.push(delta.text)
        return parts if delta.finish is None else [*parts, *self._reader.finish()]


class _OpenAiChunks:
    """What streams of chats and of completions have in common."""

    ping = PING

    def __init__(self, head: Head, texts: TextService, *, includes_usage: bool) -> None:
        self._head = head.record(is_chunk=True)
        self._usage = {"usage": None} if includes_usage else {}
        self._texts = texts

    def end(self, answers: Answers) -> bytes:
        """Write the count of tokens, if it is wanted, and that this is all."""
        if not self._usage:
            return DONE
        usage = usage_record(answers.usage)
        return event({**self._head, "choices": [], "usage": usage}) + DONE

    def failed(self, error: ApiError) -> bytes:
        """Write an error as the end of the stream."""
        return error_frame(error)


class ChatChunks(_OpenAiChunks):
    """Writes the chunks of a chat.

    Args:
        head: What they have in common.
        num_answers: How many answers there are.
        texts: Knows tokens.
        calls_tools: Look for calls of tools.
        includes_usage: Each chunk says that it counts nothing, and the last one counts.
    """

    def __init__(
        self,
        head: Head,
        num_answers: int,
        texts: TextService,
        *,
        calls_tools: bool,
        includes_usage: bool,
    ) -> None:
        super().__init__(head, texts, includes_usage=includes_usage)
        self._pieces = [Pieces(calls_tools=True) for _ in range(num_answers)] if calls_tools else []
        self._num_calls = [0] * num_answers
        # A chunk with a mark in the place of the text, cut there.
        marked = (self._chunk(n, {"content": _MARK}) for n in range(num_answers))
        self._around = [chunk.split(encode(_MARK)) for chunk in marked]

    def begin(self) -> bytes:
        """Write who speaks, for each answer."""
        roles = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(n, roles) for n in range(len(self._num_calls)))

    def piece(self, delta: AnswerDelta) -> bytes:
        """Write what a piece adds, and its end if it is one."""
        frames: list[bytes] = []
        if self._pieces:
            frames += self._parts(delta)
        elif delta.tokens:
            content = {"content": delta.text}
            logprobs = chat_logprobs(delta.tokens, self._texts)
            frames.append(self._chunk(delta.answer, content, logprobs=logprobs))
        elif delta.text:
            frames.append(self._text(delta.answer, delta.text))
        if delta.finish is not None:
            finish = "tool_calls" if self._num_calls[delta.answer] else delta.finish
            frames.append(self._chunk(delta.answer, {}, finish=finish))
        return b"".join(frames)

    def _text(self, answer: int, text: str) -> bytes:
        before, after = self._around[answer]
        return before + _QUOTE(text).encode() + after

    def _parts(self, delta: AnswerDelta) -> Iterable[bytes]:
        parts = self._pieces[delta.answer].push(delta)
        logprobs = chat_logprobs(delta.tokens, self._texts) if delta.tokens else None
        if logprobs is not None and not parts:
            yield self._chunk(delta.answer, {}, logprobs=logprobs)
        for part in parts:
            if isinstance(part, str):
                yield self._chunk(delta.answer, {"content": part}, logprobs=logprobs)
            else:
                number = self._num_calls[delta.answer]
                self._num_calls[delta.answer] += 1
                call = {"index": number, **call_record(part)}
                yield self._chunk(delta.answer, {"tool_calls": [call]}, logprobs=logprobs)
            logprobs = None

    def _chunk(
        self,
        answer: int,
        delta: Mapping[str, Any],
        *,
        logprobs: Mapping[str, Any] | None = None,
        finish: str | None = None,
    ) -> bytes:
        choice = {"index": answer, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**self._head, "choices": [choice], **self._usage})


class TextChunks(_OpenAiChunks):
    """Writes the chunks of completions; arguments as for `ChatChunks`."""

    def __init__(
        self, head: Head, num_answers: int, texts: TextService, *, includes_usage: bool
    ) -> None:
        super().__init__(head, texts, includes_usage=includes_usage)
        self._offsets = [0] * num_answers

    def begin(self) -> bytes:
        """Write nothing: completions have no roles."""
        return b""

    def piece(self, delta: AnswerDelta) -> bytes:
        """Write what a piece adds."""
        offset = self._offsets[delta.answer]
        self._offsets[delta.answer] += len(delta.text)
        logprobs = text_logprobs(delta.tokens, self._texts, offset) if delta.tokens else None
        choice = {
            "index": delta.answer,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish,
        }
        return event({**self._head, "choices": [choice], **self._usage})


def usage_record(usage: Usage) -> dict[str, int]:
    """Write a count of tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def call_record(call: ToolCall) -> dict[str, Any]:
    """Write the call of a tool."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def chat_logprobs(tokens: Sequence[TokenText], texts: TextService) -> dict[str, Any]:
    """Write log probabilities as chats have them."""
    content = []
    for token in tokens:
        assert token.logprobs is not None, "they were asked for"
        top = [_logprob(texts, other, value) for other, value in token.logprobs.top]
        chosen = _logprob(texts, token.token_id, token.logprobs.chosen)
        content.append({**chosen, "top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenText], texts: TextService, offset: int) -> dict[str, Any]:
    """Write log probabilities as completions have them; `offset` is where the text begins."""
    record: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for token in tokens:
        assert token.logprobs is not None, "they were asked for"
        record["tokens"].append(token.text)
        record["token_logprobs"].append(token.logprobs.chosen)
        record["top_logprobs"].append(
            {texts.token_text(other)[0]: value for other, value in token.logprobs.top}
        )
        record["text_offset"].append(offset)
        offset += len(token.text)
    return record


def _logprob(texts: TextService, token_id: int, value: float) -> dict[str, Any]:
    text, data = texts.token_text(token_id)
    return {"token": text, "logprob": value, "bytes": list(data)}
