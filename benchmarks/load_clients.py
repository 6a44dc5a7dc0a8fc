"""Many streaming clients at a time, in a process of their own: `server_load` starts it.

Reads from stdin what to do, as JSON; writes what it measured to stdout, as JSON. Plain sockets,
so that the clients take little of the processor that they share with the server.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

_SECONDS = 1800


@dataclass
class Seen:
    """What the clients saw.

    Attributes:
        first_s: From each request to its first piece.
        gaps_s: Between two pieces.
        num_tokens: Pieces of all answers.
        errors: What was not an answer to its end.
        seconds: Of the whole wave.
    """

    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def one(port: int, model: str, number: int, num_tokens: int, seen: Seen) -> None:
    """Ask once, and read the answer as it comes."""
    body = json.dumps(
        {
            "model": model,
            "prompt": f"{number}: once upon a time there was a ship, and on it",
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(head.encode() + body)
    last, is_done, status = 0.0, False, b""
    while line := await reader.readline():
        status = status or line
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif line.startswith(b"data: {"):
            now = time.perf_counter()
            if last:
                seen.gaps_s.append(now - last)
            else:
                seen.first_s.append(now - began)
            last = now
            seen.num_tokens += 1
    writer.close()
    if not is_done or b" 200 " not in status:
        seen.errors.append(status.decode(errors="replace").strip())


async def wave(port: int, model: str, num_clients: int, num_tokens: int) -> Seen:
    """Ask with all clients at a time."""
    seen = Seen()

    async def client(number: int) -> None:
        try:
            await asyncio.wait_for(one(port, model, number, num_tokens, seen), _SECONDS)
        except (OSError, TimeoutError, ValueError) as error:
            seen.errors.append(repr(error))

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(num_clients)))
    seen.seconds = time.perf_counter() - began
    return seen


if __name__ == "__main__":
    json.dump(asdict(asyncio.run(wave(**json.load(sys.stdin)))), sys.stdout)
