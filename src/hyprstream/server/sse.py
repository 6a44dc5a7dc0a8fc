"""Server-sent events: frames, and the answer that sends them as they come.

Sent directly as ASGI messages: nothing stands between a token and the socket but its frame.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from hyprstream.errors import HyprstreamError
from hyprstream.server.errors import ApiError, api_error, internal_error

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def encode(data: object) -> bytes:
    """Write JSON as short as it can be."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def event(data: Mapping[str, Any]) -> bytes:
    """Write one frame."""
    return b"data: " + encode(data) + b"\n\n"


def named_event(data: Mapping[str, Any]) -> bytes:
    """Write one frame that is called by its `type`."""
    kind: str = data["type"]
    return b"event: " + kind.encode() + b"\n" + event(data)


def error_frame(error: ApiError) -> bytes:
    """Write an error as the end of a stream, as OpenAI does."""
    return event(error.body) + DONE


class EventStream(Response):
    """An answer in frames.

    A client that goes away, or leaves what it is sent unread for too long, ends the work: the
    frames are closed. An error in the middle becomes a frame. When nothing comes for a while,
    a comment is sent.

    Args:
        frames: What to send; closed at the end in every case.
        ping_s: After how much silence a comment is sent.
        write_timeout_s: How long a client may leave what it is sent unread.
        finish: Done at the end, whatever the end.
        ping: What breaks a silence.
        failed: Writes an error as the end of the stream.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        ping_s: float,
        write_timeout_s: float,
        finish: Callable[[], Awaitable[None]],
        ping: bytes = PING,
        failed: Callable[[ApiError], bytes] = error_frame,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._frames = frames
        self._ping_s = ping_s
        self._write_timeout_s = write_timeout_s
        self._finish = finish
        self._ping = ping
        self._failed = failed
        self._sent_at = time.monotonic()
        self._is_sending = False

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all frames, or as many as the client stays for."""
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        sending = asyncio.create_task(self._send_all(send))
        beside = [
            asyncio.create_task(_gone(receive)),
            asyncio.create_task(self._keep(send)),
        ]
        try:
            # Whichever is over first: all was sent, or nobody is there to send to.
            await asyncio.wait([sending, *beside], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *beside):
                task.cancel()
            await asyncio.gather(sending, *beside, return_exceptions=True)
            await self._finish()
        if sending.done() and not sending.cancelled():
            sending.result()

    async def _send_all(self, send: Send) -> None:
        try:
            async for frame in self._frames:
                await self._send(send, frame)
        except HyprstreamError as error:
            await self._send(send, self._failed(api_error(error)))
        except Exception:
            # The status was sent long ago: an error is a frame like others.
            log.exception("an answer failed on its way")
            await self._send(send, self._failed(internal_error()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, frame: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": frame, "more_body": True})
        self._is_sending = False
        self._sent_at = time.monotonic()

    async def _keep(self, send: Send) -> None:
        """Break a long silence; return when the client has not read for too long."""
        while True:
            await asyncio.sleep(min(self._ping_s, self._write_timeout_s) / 4)
            silent_s = time.monotonic() - self._sent_at
            if self._is_sending and silent_s > self._write_timeout_s:
                log.info("a client left its answer unread")
                return
            if not self._is_sending and silent_s >= self._ping_s:
                await self._send(send, self._ping)


async def _gone(receive: Receive) -> None:
    """Return when the client is not there any more."""
    while (await receive())["type"] != "http.disconnect":
        pass
