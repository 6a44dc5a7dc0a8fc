"""The server as a process of its own."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import httpx

SRC = Path(__file__).parents[2] / "src"


class ServerProcess:
    """`hyprstream server` on a free port, from its start to its end."""

    def __init__(self, home: Path, *options: str, **environment: str) -> None:
        self._log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hyprstream", "server", str(home / "model"), "--port", "0",
             *options],
            env={
                **os.environ,
                "PYTHONPATH": str(SRC),
                "OMP_NUM_THREADS": "1",
                "HYPRSTREAM_HOME": str(home),
                "HYPRSTREAM_CONFIG": str(home / "none.toml"),
                "HYPRSTREAM_ENGINE__KV_MEMORY_BYTES": str(1 << 23),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        stderr = self.process.stderr
        self._reader = threading.Thread(target=lambda: self._log.extend(stderr), daemon=True)
        self._reader.start()
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.process.wait(30)
            log = self.log
            self.__exit__()
            raise AssertionError(log)

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        if self.process.poll() is not None:
            self._reader.join(10)
        return "".join(self._log)

    @property
    def flight(self) -> str:
        """Where it answers SQL, if it does."""
        return self.log.partition("Arrow Flight SQL at ")[2].split()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            self._reader.join(10)
            pipe.close()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(40)

    def client(self, key: str = "", **options: Any) -> httpx.Client:
        """A client with a key."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=30, trust_env=False, **options
        )
