"""One request at a time: load, prompt and token speed and memory, beside the peers.

Each measurement is a process of its own, with one thread or as many as
`HYPRSTREAM_BENCH_THREADS` says; the engines take turns, round after round, and a ratio is taken
within each round. `HYPRSTREAM_BENCH_PARTS` chooses among the tables: `stored,expanded,qwen3`.
vLLM takes part in bfloat16, where `HYPRSTREAM_BENCH_VLLM` names an interpreter that has it.
`HYPRSTREAM_BENCH_KV=int8` keeps our keys and values in 8 bits; `HYPRSTREAM_BENCH_PROMPT` is
how many tokens a prompt has (256).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.models import default_model, expanded_folder, qwen3_folder, qwen3_gguf
from benchmarks.vllm_peer import ENVIRONMENT, tell_if_left_out, vllm_python

THREADS = os.environ.get("HYPRSTREAM_BENCH_THREADS", "1")
PARTS = os.environ.get("HYPRSTREAM_BENCH_PARTS", "stored,expanded,qwen3").split(",")
SPEEDS = ("prefill_tokens_per_s", "decode_tokens_per_s")


@dataclass(frozen=True)
class Run:
    """One engine on one file; the first of a table is what the others are compared with."""

    engine: str
    file: Path
    option: str

    @property
    def label(self) -> str:
        return f"{self.engine} {self.option}"


def measure(run: Run) -> dict[str, float] | None:
    """Measure in a process of its own; None where a peer fails, which is reported and no more."""
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1"}
    python = sys.executable
    if run.engine == "vllm":
        environment |= ENVIRONMENT
        python = vllm_python() or python
    command = [python, "-m", "benchmarks.worker", run.engine, str(run.file), run.option]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and run.engine == "hyprstream":
        raise RuntimeError(f"{run.label} failed:\n{done.stderr[-2000:]}")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        print(f"{run.label} ended with status {done.returncode}: {last[0]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def table(title: str, runs: Sequence[Run], rounds: int) -> None:
    """Print medians, and ratios to the first run with their spread."""
    results: dict[str, list[dict[str, float]]] = {run.label: [] for run in runs}
    for _ in range(rounds):
        for run in runs:
            row = measure(run)
            if row is None:
                results.pop(run.label, None)
            elif run.label in results:
                results[run.label].append(row)
    how = "1 thread, processor seconds" if THREADS == "1" else f"{THREADS} threads, wall seconds"
    print(f"\n{title} ({rounds} interleaved rounds, {how})")
    print("| engine | load s | prefill tok/s | decode tok/s | resident MB | peak MB |")
    print("|---|---|---|---|---|---|")
    for label, rows in results.items():
        median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        print(
            f"| {label} | {median['load_s']:.2f} | {median['prefill_tokens_per_s']:.1f} "
            f"| {median['decode_tokens_per_s']:.1f} | {median['resident_bytes'] / 1e6:.0f} "
            f"| {median['peak_bytes'] / 1e6:.0f} |"
        )
    first, *others = results
    print(f"\n| {first} / | prefill | decode |\n|---|---|---|")
    for label in others:
        cells = [spread(results[first], results[label], key) for key in SPEEDS]
        print(f"| {label} | {cells[0]} | {cells[1]} |")
    sys.stdout.flush()


def spread(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], key: str) -> str:
    ratios = [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(rounds: int) -> None:
    has_llama_cpp = find_spec("llama_cpp") is not None
    if not has_llama_cpp:
        print("llama-cpp-python is not installed: its rows are left out", file=sys.stderr)
    tell_if_left_out()

    def llama(file: Path) -> list[Run]:
        return [Run("llama.cpp", file, file.stem)] if has_llama_cpp else []

    smol = default_model()
    if "stored" in PARTS:
        peers = [Run("transformers", smol, "bfloat16"), *llama(smol)]
        size = f"{smol.stat().st_size / 1e6:.0f} MB"
        table(
            f"SmolLM2-135M-Instruct, Q4_1 file of {size}",
            [Run("hyprstream", smol, "stored"), *peers],
            rounds,
        )
    if "expanded" in PARTS:
        expanded(smol, rounds)
    if "qwen3" in PARTS:
        qwen3(llama, rounds)


def vllm(folder: Path) -> list[Run]:
    return [Run("vllm", folder, "bfloat16")] if vllm_python() else []


def expanded(smol: Path, rounds: int) -> None:
    """The default model with dense weights, which vLLM reads as SafeTensors."""
    with tempfile.TemporaryDirectory() as temporary:
        dense = vllm(expanded_folder(smol, Path(temporary))) if vllm_python() else []
        table(
            "SmolLM2-135M-Instruct, expanded to bfloat16",
            [
                Run("hyprstream", smol, "bfloat16"),
                Run("transformers", smol, "bfloat16"),
                *dense,
            ],
            rounds,
        )


def qwen3(llama: Callable[[Path], list[Run]], rounds: int) -> None:
    """Random weights of the shape of Qwen3-0.6B, in three storages."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = qwen3_folder(Path(temporary) / "qwen3")
        files = {
            kind: qwen3_gguf(Path(temporary) / f"{kind}.gguf", kind)
            for kind in ("BF16", "Q8_0", "Q4_0")
        }
        table(
            "Qwen3-0.6B shape, bfloat16",
            [
                Run("hyprstream", folder, "bfloat16"),
                Run("transformers", folder, "bfloat16"),
                *llama(files["BF16"]),
                *vllm(folder),
            ],
            rounds,
        )
        for kind, option in (("Q8_0", "int8"), ("Q4_0", "int4")):
            table(
                f"Qwen3-0.6B shape, {kind}",
                [
                    Run("hyprstream", files[kind], "stored"),
                    Run("hyprstream", folder, option),
                    Run("transformers", folder, "bfloat16"),
                    *llama(files[kind]),
                ],
                rounds,
            )
