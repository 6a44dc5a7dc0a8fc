"""What the HTTP layer costs for each token that is streamed: no engine, all streams at a time.

A text service of a few lines gives every stream a token at once, as a step of the engine does.
What is left is ours: frames, the application, uvicorn and the socket. Processor time of the
server's process alone; the clients are a process of their own.
"""

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import uvicorn

from hyprstream.runtime.answers import AnswerDelta
from hyprstream.runtime.bases import Bases, Serving
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.text import Usage
from hyprstream.server.access import Guard
from hyprstream.server.app import ROUTES, build_routes
from hyprstream.server.live import LiveConfig
from hyprstream.server.metrics import Metrics
from hyprstream.server.middleware import Gate
from hyprstream.server.serve import uvicorn_config
from hyprstream.server.state import ServerState

STREAMS, TOKENS = 64, 400

CLIENTS = """
import asyncio, sys
BODY = b'{"messages": [{"role": "user", "content": "x"}], "stream": true}'
HEAD = (b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: localhost\\r\\n"
        b"Content-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(BODY))
async def one():
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]), limit=1 << 24)
    writer.write(HEAD + BODY)
    await reader.readuntil(b"[DONE]")
    writer.close()
async def main():
    await asyncio.gather(*(one() for _ in range(int(sys.argv[2]))))
asyncio.run(main())
"""


class Steps:
    """Lets all streams go on together."""

    def __init__(self):
        self.waiting: list[asyncio.Future[None]] = []

    async def wait(self):
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        await turn


class Answers:
    """The tokens of one stream."""

    version = None
    usage = Usage(prompt_tokens=1, completion_tokens=TOKENS)

    def __init__(self, steps):
        self._steps = steps
        self._left = TOKENS

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._left:
            raise StopAsyncIteration
        await self._steps.wait()
        self._left -= 1
        return AnswerDelta(answer=0, text=" token", finish=None if self._left else "length")

    async def close(self):
        """Hold nothing."""


def make_app(steps: Steps, config: ServerConfig) -> Gate:
    async def chat(*_: Any, **__: Any) -> Answers:
        return Answers(steps)

    live = LiveConfig(Settings(server=config))
    fake = SimpleNamespace(text=SimpleNamespace(chat=chat), model=SimpleNamespace(ref="model"))
    metrics = Metrics(num_requests=lambda: 0, num_adapters=lambda: 0)
    routes = build_routes()
    runtime = cast("Runtime", fake)
    base = Serving("model", runtime)
    bases = SimpleNamespace(first_name="model", use=lambda _name: nullcontext(base))
    routes.state.server = ServerState(
        runtime=runtime,
        bases=cast("Bases", bases),
        live=live,
        metrics=metrics,
        started_at=0,
    )
    guard = Guard(ROUTES, None, max_concurrent=STREAMS, max_per_minute=0)
    return Gate(routes, guard=guard, live=live, observe=metrics.request)


async def cpu_ms_per_token() -> float:
    steps, config = Steps(), ServerConfig(port=0)
    server = uvicorn.Server(uvicorn_config(make_app(steps, config), config))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        port = str(listening.getsockname()[1])
        clients = subprocess.Popen([sys.executable, "-c", CLIENTS, port, str(STREAMS)])
        while len(steps.waiting) < STREAMS:
            await asyncio.sleep(0.01)
        began = time.process_time()
        while steps.waiting:
            turns, steps.waiting = steps.waiting, []
            for turn in turns:
                turn.set_result(None)
            while len(steps.waiting) < len(turns) and server.server_state.tasks:
                await asyncio.sleep(0)
        spent = time.process_time() - began
        clients.wait()
        server.should_exit = True
        await serving
    return 1000 * spent / (STREAMS * TOKENS)


def main(rounds: int) -> None:
    found = [asyncio.run(cpu_ms_per_token()) for _ in range(rounds)]
    print(f"\nProcessor time of the HTTP layer per streamed token, {STREAMS} streams, ms")
    print("| median | least | most |\n|---|---|---|")
    print(f"| {statistics.median(found):.4f} | {min(found):.4f} | {max(found):.4f} |")
