"""Answers as Anthropic's protocol writes them: whole, and as events."""

import json
import secrets
from collections.abc import Iterable
from typing import Any

from hyprstream.runtime.answers import AnswerDelta, Answers
from hyprstream.runtime.text import Completion
from hyprstream.runtime.tools import ToolCall
from hyprstream.server.chunks import Head, Pieces
from hyprstream.server.errors import ApiError
from hyprstream.server.sse import named_event

_PING = named_event({"type": "ping"})


class MessageEvents:
    """Writes the events of a message, and keeps what they add up to.

    Args:
        head: Its id, and what answers.
        answers: Know how long the prompt is.
        max_tokens: Most tokens that were asked for.
        calls_tools: Look for calls of tools.
    """

    ping = _PING

    def __init__(self, head: Head, answers: Answers, *, max_tokens: int, calls_tools: bool) -> None:
        self._base: dict[str, Any] = {
            "id": head.id,
            "type": "message",
            "role": "assistant",
            "model": head.model,
            "system_fingerprint": head.fingerprint,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(answers, 0),
        }
        self._max_tokens = max_tokens
        self._pieces = Pieces(calls_tools=calls_tools)
        self._content: list[dict[str, Any]] = []
        self._said: list[str] | None = None  # of the text that is open

    def whole(self, answers: Answers) -> dict[str, Any]:
        """Return the whole message, of answers that are over."""
        [completion] = answers.completions
        self.piece(AnswerDelta(answer=0, text=completion.text, finish="stop"))
        self._close()
        usage = _usage(answers, answers.usage.completion_tokens)
        return {**self._base, "content": self._content, **self._stop(completion), "usage": usage}

    def begin(self) -> bytes:
        """Write that there is a message."""
        return named_event({"type": "message_start", "message": self._base}) + _PING

    def piece(self, delta: AnswerDelta) -> bytes:
        """Write what a piece adds."""
        frames: list[bytes] = []
        for part in self._pieces.push(delta):
            frames += self._text(part) if isinstance(part, str) else self._call(part)
        return b"".join(frames)

    def end(self, answers: Answers) -> bytes:
        """Write why the message ends, and that it does."""
        [completion] = answers.completions
        closed = self._close()
        usage = _usage(answers, answers.usage.completion_tokens)
        delta = {"type": "message_delta", "delta": self._stop(completion), "usage": usage}
        return closed + named_event(delta) + named_event({"type": "message_stop"})

    def failed(self, error: ApiError) -> bytes:
        """Write an error as the end of the stream."""
        return named_event(error.anthropic_body)

    def _text(self, text: str) -> Iterable[bytes]:
        if self._said is None:
            self._said = []
            yield self._start({"type": "text", "text": ""})
        self._said.append(text)
        yield self._delta({"type": "text_delta", "text": text})

    def _call(self, call: ToolCall) -> Iterable[bytes]:
        yield self._close()
        block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name}
        yield self._start({**block, "input": {}})
        yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        self._content[-1]["input"] = json.loads(call.arguments)
        yield self._end_block()

    def _close(self) -> bytes:
        """End the text that is open, if one is."""
        if self._said is None:
            return b""
        self._content[-1]["text"] = "".join(self._said)
        self._said = None
        return self._end_block()

    def _start(self, block: dict[str, Any]) -> bytes:
        index = len(self._content)
        frame = {"type": "content_block_start", "index": index, "content_block": block}
        self._content.append(block)
        return named_event(frame)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        index = len(self._content) - 1
        return named_event({"type": "content_block_delta", "index": index, "delta": delta})

    def _end_block(self) -> bytes:
        return named_event({"type": "content_block_stop", "index": len(self._content) - 1})

    def _stop(self, completion: Completion) -> dict[str, str | None]:
        if any(block["type"] == "tool_use" for block in self._content):
            reason = "tool_use"
        elif completion.stop_string is not None:
            reason = "stop_sequence"
        elif completion.finish_reason == "length":
            num_tokens = completion.usage.completion_tokens
            is_asked_for = num_tokens >= self._max_tokens
            reason = "max_tokens" if is_asked_for else "model_context_window_exceeded"
        else:
            reason = "end_turn"
        stop = completion.stop_string if reason == "stop_sequence" else None
        return {"stop_reason": reason, "stop_sequence": stop}


def _usage(answers: Answers, num_tokens: int) -> dict[str, int]:
    return {"input_tokens": answers.usage.prompt_tokens, "output_tokens": num_tokens}
