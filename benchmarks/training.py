"""Training steps on the default model and on Qwen3-0.6B's shape, beside PEFT on transformers.

An adapter of rank 16 on all linear layers, AdamW, bfloat16 activations. Each measurement is a
process of its own with one thread; the engines take turns, and ratios are taken within a round.
Tokens are those of the samples: PEFT also computes the padding that it needs.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.models import default_model, qwen3_folder
from benchmarks.single_stream import spread
from benchmarks.training_worker import CASES, Batch, Sample

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
DENSE = list(PAIRS[0])
STORED = list(RUNS)[:3]

MIXED_BATCHES = 4
MIXED_SAMPLES = 8
LONGEST = 512


def instructions(model: Path) -> list[Batch] | None:
    """Shuffled batches of self-instruct, of which the answers count; None without the data."""
    from hyprstream.models.load import open_model

    folder = os.environ.get("HYPRSTREAM_TEST_DATA")
    if not folder:
        return None
    file = Path(folder) / "corpora" / "self_instruct" / "seed_tasks.jsonl"
    tokenizer = open_model(model).tokenizer()
    samples: list[Sample] = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        for instance in row["instances"]:
            prompt = tokenizer.encode(f"{row['instruction']}\n{instance['input']}\n")
            answer = tokenizer.encode(instance["output"])
            if answer and len(prompt) < LONGEST:
                samples.append(((prompt + answer)[: LONGEST + 1], len(prompt)))
    random.Random(0).shuffle(samples)  # noqa: S311  # an order, no secret
    return [
        Batch(tuple(samples[i * MIXED_SAMPLES : (i + 1) * MIXED_SAMPLES]))
        for i in range(MIXED_BATCHES)
    ]


def measure(label: str, file: Path, batches: Path) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    engine, option = RUNS[label]
    worker = [sys.executable, "-m", "benchmarks.training_worker"]
    command = [*worker, engine, str(file), option, str(batches)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{label} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(
    title: str, file: Path, batches: Sequence[Batch], chosen: Sequence[str], rounds: int
) -> None:
    """Print medians, and ratios with their spread."""
    results: dict[str, list[dict[str, float]]] = {label: [] for label in chosen}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as stream:
        json.dump([batch.samples for batch in batches], stream)
        stream.flush()
        for _ in range(rounds):
            for label, rows in results.items():
                rows.append(measure(label, file, Path(stream.name)))
    losses = [results[label][0]["loss"] for label in chosen]
    assert max(losses) < 1.02 * min(losses), f"the peers compute different losses: {losses}"
    print(f"\n{title}; {rounds} rounds")
    print("| engine | tokens/s | peak MB |\n|---|---|---|")
    for label, rows in results.items():
        speed = statistics.median(row["tokens_per_s"] for row in rows)
        peak = statistics.median(row["peak_bytes"] for row in rows)
        print(f"| {label} | {speed:.0f} | {peak / 1e6:.0f} |")
    print("\n| ratio | tokens/s | peak |\n|---|---|---|")
    for ours, theirs in PAIRS:
        if ours in results and theirs in results:
            keys = ("tokens_per_s", "peak_bytes")
            cells = [spread(results[ours], results[theirs], key) for key in keys]
            print(f"| {ours} / {theirs} | {cells[0]} | {cells[1]} |")
    sys.stdout.flush()


def main(rounds: int) -> None:
    file = default_model()
    mixed = instructions(file)
    if mixed is None:
        print("HYPRSTREAM_TEST_DATA is not set: no case of real data", file=sys.stderr)
    else:
        lengths = [len(ids) - 1 for batch in mixed for ids, _ in batch.samples]
        title = f"mixed: self-instruct in batches of {MIXED_SAMPLES}, samples of {min(lengths)}"
        table(f"{title} to {max(lengths)} tokens, answers count", file, mixed, STORED, rounds)
    for case, batch in CASES.items():
        chosen = list(RUNS) if case == "even" else DENSE
        table(f"{case}: {batch.described}", file, [batch], chosen, rounds)
    with tempfile.TemporaryDirectory() as folder:
        batch = Batch.made((128, 128))
        shape = qwen3_folder(Path(folder) / "qwen3")
        table(f"Qwen3-0.6B's shape: {batch.described}", shape, [batch], DENSE, rounds)
