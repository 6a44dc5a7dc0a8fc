"""Training steps on the default model, beside PEFT on transformers.

An adapter of rank 16 on all linear layers, AdamW, bfloat16 activations. Each measurement is a
process of its own with one thread; the engines take turns, and ratios are taken within a round.
Tokens are those of the samples: PEFT also computes the padding that it needs.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.models import default_model
from benchmarks.single_stream import spread
from benchmarks.training_worker import CASES

RUNS = {
    "hyprstream, bfloat16": ("hyprstream", "plain"),
    "PEFT, bfloat16": ("peft", "plain"),
    "hyprstream, as stored": ("hyprstream", "stored"),
    "hyprstream, bfloat16, recomputing": ("hyprstream", "recompute"),
    "PEFT, bfloat16, recomputing": ("peft", "recompute"),
}
PAIRS = [
    ("hyprstream, bfloat16", "PEFT, bfloat16"),
    ("hyprstream, as stored", "PEFT, bfloat16"),
    ("hyprstream, bfloat16, recomputing", "PEFT, bfloat16, recomputing"),
]


def measure(label: str, file: Path, case: str) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    engine, option = RUNS[label]
    command = [sys.executable, "-m", "benchmarks.training_worker", engine, str(file), option, case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{label} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(rounds: int) -> None:
    file = default_model()
    for case, batch in CASES.items():
        chosen = list(RUNS) if case == "even" else list(PAIRS[0])
        results: dict[str, list[dict[str, float]]] = {label: [] for label in chosen}
        for _ in range(rounds):
            for label, rows in results.items():
                rows.append(measure(label, file, case))
        losses = [results[label][0]["loss"] for label in chosen]
        assert max(losses) < 1.02 * min(losses), f"the peers compute different losses: {losses}"
        counted = "all" if batch.counted is None else f"the last {batch.counted}"
        print(f"\n{case}: samples of {batch.lengths} tokens, {counted} count; {rounds} rounds")
        print("| engine | tokens/s | peak MB |\n|---|---|---|")
        for label, rows in results.items():
            speed = statistics.median(row["tokens_per_s"] for row in rows)
            peak = statistics.median(row["peak_bytes"] for row in rows)
            print(f"| {label} | {speed:.0f} | {peak / 1e6:.0f} |")
        print("\n| ratio | tokens/s | peak |\n|---|---|---|")
        for ours, theirs in PAIRS:
            if ours in results:
                keys = ("tokens_per_s", "peak_bytes")
                cells = [spread(results[ours], results[theirs], key) for key in keys]
                print(f"| {ours} / {theirs} | {cells[0]} | {cells[1]} |")
        sys.stdout.flush()
