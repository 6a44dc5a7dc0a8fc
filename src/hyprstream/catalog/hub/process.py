"""Our end of the process in which the Hub's client library runs (`catalog/hub/client.py`)."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from hyprstream.errors import UnavailableError

_PROGRAM = Path(__file__).with_name("client.py")
_MAX_LINE_BYTES = 64 << 20
_READ_BYTES = 1 << 20

# The library reads them when it is imported. What it would do by itself is switched off: use a
# token that it finds, tell which programs run, draw bars, take files through a second protocol.
_SETTINGS = {
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_XET": "1",
    "PYTHONIOENCODING": "utf-8",
}
# Whether to be offline is decided before there is a process; debugging would print requests.
_DROPPED = frozenset(
    {
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"),
        *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DEBUG"),
        *("HF_HUB_ENABLE_HF_TRANSFER", "HUGGINGFACE_CO_STAGING"),
    }
)


class HubFailureError(Exception):
    """Report what the library reported; `registries/hf.py` says it to the user.

    Attributes:
        kind: One word or two, as `client.failure` chooses them; "silent" if nothing came.
        reason: Text of the server or the library. Not trusted.
        status: The HTTP status, if the server answered with one.
        retry_after_s: When the server wants to be asked again, if it said so.
    """

    def __init__(
        self,
        kind: str,
        reason: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


@runtime_checkable
class Sink(Protocol):
    """Takes the content of a file."""

    def write(self, content: bytes, /) -> object:
        """Append a piece."""
        ...

    def restart(self) -> None:
        """Forget all pieces: the content comes again, from its beginning."""
        ...


class HubProcess:
    """One run of the client; used in a `with` block, by one thread.

    Args:
        environ: The user's environment: proxies, certificates, time limits of the library.
        endpoint: Where the Hub is.
        token: Shown to that endpoint only.
        idle_s: How long the process may say nothing before it is given up.
    """

    def __init__(
        self, environ: Mapping[str, str], endpoint: str, token: str | None, *, idle_s: float
    ) -> None:
        self._idle_s = idle_s
        self._token = token
        self._pending = bytearray()
        kept = {name: value for name, value in environ.items() if name not in _DROPPED}
        # -P: a huggingface_hub.py in the working directory is not the library.
        self._child = subprocess.Popen(  # noqa: S603 - this interpreter, a file of this package
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, **_SETTINGS, "HF_ENDPOINT": endpoint},
            start_new_session=True,  # Ctrl-C is for us; the process ends with the block
        )
        self._greeting: dict[str, object] | None = {"endpoint": endpoint, "token": token}

    def __enter__(self) -> "HubProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        self._child.wait()

    def ask(self, do: str, *, sink: Sink | None = None, **arguments: object) -> Any:
        """Have a method of `client.Client` called.

        Args:
            do: Its name.
            sink: Takes the content that comes, where any does.
            arguments: What it is called with.

        Raises:
            HubFailureError: It failed.
            UnavailableError: The process ended.
        """
        if self._greeting is not None:
            self._send(self._greeting)
            self._greeting = None
        self._send({"do": do, **arguments})
        while True:
            message = self._receive()
            if "bytes" in message:
                content = self._take(message["bytes"])
                assert sink is not None, f"{do} brought content"
                sink.write(content)
            elif "restart" in message:
                assert sink is not None, f"{do} brought content"
                sink.restart()
            elif "failed" in message:
                kind, reason = message.pop("failed"), message.pop("reason")
                raise HubFailureError(kind, self._without_token(reason), **message)
            else:
                return message["done"]

    def _send(self, message: Mapping[str, object]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._pending:
            self._read()
            if len(self._pending) > _MAX_LINE_BYTES:
                raise self._ended()
        message: dict[str, Any] = json.loads(self._take(self._pending.index(b"\n") + 1))
        return message

    def _take(self, num_bytes: int) -> bytes:
        while len(self._pending) < num_bytes:
            self._read()
        taken = bytes(self._pending[:num_bytes])
        del self._pending[:num_bytes]
        return taken

    def _read(self) -> None:
        assert self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        readable, _, _ = select.select([pipe], [], [], self._idle_s)
        if not readable:
            raise HubFailureError("silent", f"nothing came for {self._idle_s:.0f} s")
        data = os.read(pipe, _READ_BYTES)
        if not data:
            raise self._ended()
        self._pending += data

    def _without_token(self, text: str) -> str:
        """Cross the token out of what a server said: it may say what it was told."""
        return text.replace(self._token, "(the token)") if self._token else text

    def _ended(self) -> UnavailableError:
        self._child.kill()
        return UnavailableError(
            f"the client of the Hugging Face Hub ended with {self._child.wait()}",
            hint="Look whether `python -c 'import huggingface_hub'` works in this environment.",
        )
