"""A file of 1 GB over loopback, beside curl: how fast, at what cost, in how much memory."""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

NUM_BYTES = 1 << 30
_LOOK_S = 0.01
WORKER = (sys.executable, "-m", "benchmarks.download_worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one download took; `rss_bytes` is the most memory that its program had."""

    wall_s: float
    cpu_s: float
    rss_bytes: int


def measure(command: tuple[str, ...]) -> Run:
    """Run a program that prints the seconds its work took."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        rss_bytes = 0
        while True:
            rss_bytes = max(rss_bytes, most_memory(process.pid))
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(_LOOK_S)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0, command
    return Run(wall_s=float(output), cpu_s=usage.ru_utime + usage.ru_stime, rss_bytes=rss_bytes)


def most_memory(pid: int) -> int:
    """Tell the most memory that a program has had so far.

    What `wait4` tells is no use: a new process begins with the most that its parent had.
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def make_file(file: Path) -> str:
    """Write random bytes; return their SHA-256."""
    sha256 = hashlib.sha256()
    with file.open("wb") as stream:
        for _ in range(NUM_BYTES >> 22):
            chunk = os.urandom(1 << 22)
            sha256.update(chunk)
            stream.write(chunk)
    return sha256.hexdigest()


def main(rounds: int) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "curl is the peer: install it"
    with tempfile.TemporaryDirectory(prefix="download-", dir=".") as text:
        folder = Path(text)
        sha256 = make_file(folder / "source")
        serving = (*WORKER, "serve", str(folder / "source"))
        with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/model.gguf"
            try:
                report(rounds, compare(rounds, folder, url, sha256, curl))
            finally:
                server.kill()


def compare(rounds: int, folder: Path, url: str, sha256: str, curl: str) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {}
    for number in range(rounds):
        there = folder / f"staging{number}"
        there.mkdir()
        target = str(there / "curl")
        commands = {
            "curl": (curl, "-s", "-o", target, "-w", "%{time_total}", url),
            "hyprstream": (*WORKER, "fetch", url, str(there), sha256),
            "SHA-256 of the file alone": (*WORKER, "hash", str(folder / "source")),
        }
        for name, command in commands.items():
            os.sync()  # what one has written is not the other's to wait for
            runs.setdefault(name, []).append(measure(command))
        shutil.rmtree(there)
    return runs


def report(rounds: int, runs: dict[str, list[Run]]) -> None:
    print(f"\n1 GiB over loopback ({rounds} interleaved rounds); hyprstream also hashes and syncs")
    print("| program | median wall s | least | most | processor s | most memory |")
    print("|---|---|---|---|---|---|")
    for name, times in runs.items():
        walls = [run.wall_s for run in times]
        print(
            f"| {name} | {statistics.median(walls):.2f} | {min(walls):.2f} | {max(walls):.2f} "
            f"| {statistics.median(run.cpu_s for run in times):.2f} "
            f"| {max(run.rss_bytes for run in times) / 1e6:.0f} MB |"
        )
    ratios = [
        peer.wall_s / ours.wall_s
        for peer, ours in zip(runs["curl"], runs["hyprstream"], strict=True)
    ]
    print(f"hyprstream reaches {statistics.median(ratios):.2f} of curl's speed (median of rounds)")
