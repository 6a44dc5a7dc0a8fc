"""Streams byte by byte, their end when clients go, and errors on their way."""

import asyncio
import json
import os
import re
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from hyprstream.errors import EngineStoppedError
from hyprstream.runtime.answers import Answers
from hyprstream.runtime.text_service import TextService
from hyprstream.server.chunks import Head
from hyprstream.server.message_events import MessageEvents
from hyprstream.server.response_events import ResponseEvents
from hyprstream.server.schemas.responses import ResponseRequest
from hyprstream.server.sse import EventStream

_GOLDEN = Path(__file__).parent.parent / "golden" / "http"
MESSAGES = [{"role": "user", "content": "Hello"}]
NOTHING = Answers(
    [], reports_tokens=False, held=AsyncExitStack(), version=None, tell=lambda *_: None
)
TEXTS = TextService.__new__(TextService)  # nobody asks it anything
LONG = {"messages": MESSAGES, "max_tokens": 1900, "ignore_eos": True, "stream": True}


def steady(text: str) -> str:
    """Put the same in the place of what differs from run to run."""
    text = re.sub(r'"(chatcmpl|cmpl|call|embd)[-_][0-9a-f]{24}"', r'"\1-ID"', text)
    return re.sub(r'"created":\d+', '"created":0', text)


@pytest.mark.parametrize(
    ("name", "route", "body"),
    [
        ("chat", "/v1/chat/completions", {"messages": MESSAGES, "logit_bias": {"66": 100}}),
        (
            "chat_usage",
            "/v1/inference/poet/chat/completions",
            {"messages": MESSAGES, "logit_bias": {"66": 100}, "n": 2,
             "stream_options": {"include_usage": True}},
        ),
        ("completion", "/v1/completions", {"prompt": "a", "logit_bias": {"66": 100}}),
    ],
)  # fmt: skip
def test_a_stream_is_what_was_recorded(client, name, route, body):
    """HYPRSTREAM_WRITE_GOLDEN=1 records it. Token 66 always comes: what does is known."""
    body = {**body, "max_tokens": 3, "temperature": 0, "stream": True}
    answer = client.post(route, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    text = re.sub(r'"fp_[0-9a-f]{12}"', '"fp_VERSION"', steady(answer.text))
    file = _GOLDEN / f"{name}.sse"
    if os.environ.get("HYPRSTREAM_WRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")
    assert text == file.read_text("utf-8")


def num_requests(client) -> float:
    return number(client, "hyprstream_num_requests")


def number(client, name: str) -> float:
    page = client.get("/metrics").text
    found = re.search(rf"^{name} (\S+)", page, re.MULTILINE)
    assert found is not None
    return float(found[1])


def ends_early(client, route: str, body: dict[str, Any]) -> bool:
    """Go away after the first frame; tell whether the rest was left uncomputed."""
    before = number(client, "hyprstream_generation_tokens_total")
    with client.stream("POST", route, json=body) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
    wait_until_idle(client)
    return number(client, "hyprstream_generation_tokens_total") - before < 1900


def wait_until_idle(client) -> None:
    until = time.monotonic() + 10
    while num_requests(client):
        assert time.monotonic() < until, "the engine goes on for nobody"


def test_a_client_that_goes_away_ends_the_work(client, served):
    said = {"max_output_tokens": 1900, "ignore_eos": True, "stream": True, "input": "Hello"}
    for route, body in (
        ("/v1/chat/completions", LONG),
        ("/v1/messages", LONG),
        ("/v1/responses", said),
    ):
        assert any(ends_early(client, route, body) for _ in range(5)), route
    content = json.dumps({**LONG, "stream": False, "n": 4}).encode()
    host, port = served.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            + f"Authorization: Bearer {served.keys['all']}\r\n".encode()
            + f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        until = time.monotonic() + 10
        while not num_requests(client):
            assert time.monotonic() < until
    wait_until_idle(client)


def test_an_error_before_the_first_token_has_a_status(client):
    for stream in (True, False):
        body = {"prompt": "a" * 5000, "stream": stream}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_too_long"


class Client:
    """Both ends of an ASGI connection: what was sent, and when the client goes."""

    def __init__(self, *, reads: bool = True):
        self.sent = b""
        self.gone = asyncio.Event()
        self.is_complete = False
        self._reads = reads

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent += message.get("body", b"")
        if message["type"] == "http.response.body":
            self.is_complete = not message["more_body"]
            if not self._reads:
                await asyncio.Event().wait()


def run(frames, client: Client, *, ping_s=30.0, write_timeout_s=30.0, **form) -> bool:
    """Send frames; tell whether they were finished with."""
    finished = []

    async def finish():
        finished.append(True)

    async def main():
        stream = EventStream(
            frames(client), ping_s=ping_s, write_timeout_s=write_timeout_s, finish=finish, **form
        )
        async with asyncio.timeout(5):
            await stream({"type": "http"}, client.receive, client.send)

    asyncio.run(main())
    return finished == [True]


def test_an_error_in_the_middle_is_a_frame():
    async def frames(_client):
        yield b"data: 1\n\n"
        raise EngineStoppedError("the engine was stopped", hint="Start it again.")

    client = Client()
    assert run(frames, client)
    one, error, done, end = client.sent.split(b"\n\n")
    assert (one, done, end) == (b"data: 1", b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "engine_stopped"
    assert client.is_complete


def test_an_error_in_the_middle_is_an_event_of_the_protocol():
    async def frames(_client):
        yield b""
        raise EngineStoppedError("the engine was stopped", hint="Start it again.")

    head = Head(id="x", kind="message", created=0, model="m", fingerprint="f")
    told: list[Any] = []
    for writer in (
        MessageEvents(head, NOTHING, max_tokens=1, calls_tools=False),
        ResponseEvents(head, ResponseRequest(input="x"), TEXTS, calls_tools=False),
    ):
        client = Client()
        assert run(frames, client, failed=writer.failed, ping=writer.ping)
        name, data = client.sent.decode().strip().split("\n")
        assert name == "event: error"
        told.append(json.loads(data.removeprefix("data: ")))
    assert told[0]["error"]["type"] == "overloaded_error"
    assert (told[1]["type"], told[1]["code"]) == ("error", "engine_stopped")
    assert told[1]["sequence_number"] == 0


def test_a_mistake_of_ours_in_the_middle_tells_nothing():
    async def frames(_client):
        yield b"data: 1\n\n"
        raise ValueError("/secret/path")

    client = Client()
    assert run(frames, client)
    assert b"secret" not in client.sent
    assert b"internal_error" in client.sent


def test_silence_is_broken_by_comments():
    async def frames(client):
        while client.sent.count(b": ping\n\n") < 2:
            await asyncio.sleep(0.01)
        yield b"data: 1\n\n"

    client = Client()
    assert run(frames, client, ping_s=0.05)
    assert client.sent == b": ping\n\n" * 2 + b"data: 1\n\n"


def test_a_client_that_goes_away_ends_the_frames():
    closed = []

    async def frames(client):
        try:
            yield b"data: 1\n\n"
            client.gone.set()
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    assert run(frames, Client())
    assert closed


def test_a_client_that_reads_nothing_is_left():
    async def frames(_client):
        yield b"data: 1\n\n"

    client = Client(reads=False)
    assert run(frames, client, write_timeout_s=0.1)
    assert not client.is_complete
