"""Answers as OpenAI's Responses write them: whole, and as events that are numbered."""

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from hyprstream.runtime.answers import AnswerDelta, Answers
from hyprstream.runtime.text_service import TextService
from hyprstream.runtime.tools import ToolCall
from hyprstream.server.chunks import Head, Pieces, chat_logprobs
from hyprstream.server.errors import ApiError
from hyprstream.server.schemas.responses import ResponseRequest
from hyprstream.server.sse import PING, named_event


class ResponseEvents:
    """Writes the events of a response, and keeps what they add up to.

    Args:
        head: Its id, and what answers.
        body: What was asked for, which a response repeats.
        texts: Knows tokens.
        calls_tools: Look for calls of tools.
    """

    ping = PING

    def __init__(
        self, head: Head, body: ResponseRequest, texts: TextService, *, calls_tools: bool
    ) -> None:
        self._base = _base_record(head, body)
        self._texts = texts
        self._wants_logprobs = body.wants_logprobs
        self._pieces = Pieces(calls_tools=calls_tools)
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._said: list[str] = []  # of the message that is open
        self._logprobs: list[dict[str, Any]] = []
        self._is_open = False

    def whole(self, answers: Answers) -> dict[str, Any]:
        """Return the whole response, of answers that are over."""
        [completion] = answers.completions
        delta = AnswerDelta(
            answer=0,
            text=completion.text,
            tokens=completion.tokens if self._wants_logprobs else (),
            finish="length" if completion.finish_reason == "length" else "stop",
        )
        self.piece(delta)
        return self._finished(answers)[0]

    def begin(self) -> bytes:
        """Write that there is a response."""
        record = self._record("in_progress")
        return self._event("response.created", response=record) + self._event(
            "response.in_progress", response=record
        )

    def piece(self, delta: AnswerDelta) -> bytes:
        """Write what a piece adds."""
        parts = self._pieces.push(delta)
        logprobs = self._read_logprobs(delta)
        if logprobs and not parts:
            parts = [""]
        frames: list[bytes] = []
        for part in parts:
            if isinstance(part, str):
                frames += self._text(part, logprobs)
            else:
                frames += self._call(part)
            logprobs = []
        return b"".join(frames)

    def end(self, answers: Answers) -> bytes:
        """Write the response as it has become."""
        record, frames = self._finished(answers)
        return b"".join(frames) + self._event(f"response.{record['status']}", response=record)

    def failed(self, error: ApiError) -> bytes:
        """Write an error as the end of the stream."""
        return self._event("error", code=error.code, message=error.detail, param=error.param)

    def _read_logprobs(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        if not delta.tokens:
            return []
        content: list[dict[str, Any]] = chat_logprobs(delta.tokens, self._texts)["content"]
        return content

    def _text(self, text: str, logprobs: Sequence[dict[str, Any]]) -> Iterable[bytes]:
        if not self._is_open:
            yield self._open()
        self._said.append(text)
        self._logprobs += logprobs
        yield self._event(
            "response.output_text.delta", **self._place(), delta=text, logprobs=logprobs
        )

    def _open(self) -> bytes:
        self._is_open = True
        self._said, self._logprobs = [], []
        item = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        added = self._event("response.output_item.added", output_index=len(self._output), item=item)
        self._output.append(item)
        return added + self._event("response.content_part.added", **self._place(), part=_part(""))

    def _close(self, status: str) -> Iterable[bytes]:
        """End the message that is open, if one is."""
        if not self._is_open:
            return
        self._is_open = False
        text, logprobs = "".join(self._said), self._logprobs
        part = _part(text, logprobs)
        place = self._place()
        self._output[-1] |= {"status": status, "content": [part]}
        yield self._event("response.output_text.done", **place, text=text, logprobs=logprobs)
        yield self._event("response.content_part.done", **place, part=part)
        yield self._item_done()

    def _call(self, call: ToolCall) -> Iterable[bytes]:
        yield from self._close("completed")
        item = {
            "id": f"fc_{secrets.token_hex(12)}",
            "type": "function_call",
            "call_id": f"call_{secrets.token_hex(12)}",
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }
        place = {"item_id": item["id"], "output_index": len(self._output)}
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        self._output.append(item)
        arguments = call.arguments
        yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
        yield self._event(
            "response.function_call_arguments.done", **place, name=call.name, arguments=arguments
        )
        item |= {"arguments": arguments, "status": "completed"}
        yield self._item_done()

    def _finished(self, answers: Answers) -> tuple[dict[str, Any], list[bytes]]:
        """Return the response as it is at its end, and the events that come before that."""
        [completion] = answers.completions
        is_cut = completion.finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        frames = [] if self._output else [self._open()]
        frames += self._close(status)
        usage = answers.usage
        record = self._record(
            status,
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            output=self._output,
            usage={
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        )
        return record, frames

    def _item_done(self) -> bytes:
        index = len(self._output) - 1
        return self._event("response.output_item.done", output_index=index, item=self._output[-1])

    def _place(self) -> dict[str, Any]:
        """Say of which text the talk is: the one of the last message."""
        index = len(self._output) - 1
        return {"item_id": self._output[-1]["id"], "output_index": index, "content_index": 0}

    def _record(self, status: str, **changes: Any) -> dict[str, Any]:
        return {**self._base, "status": status, **changes}

    def _event(self, kind: str, **fields: Any) -> bytes:
        frame = named_event({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return frame


def _part(text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _base_record(head: Head, body: ResponseRequest) -> dict[str, Any]:
    """Write what a response is from its beginning."""
    given = body.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": head.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "system_fingerprint": head.fingerprint,
        "temperature": body.temperature,
        "text": given.get("text", {"format": {"type": "text"}}),
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }
