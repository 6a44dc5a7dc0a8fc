"""Many requests at a time: throughput with and without adapters, beside transformers + PEFT.

Each measurement is a process of its own with one thread; the engines take turns, round
after round, and a ratio is taken within each round.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.engine_worker import CASES, NEW_TOKENS, PROMPT_TOKENS, RANK
from benchmarks.models import default_model

Row = dict[str, float]


def measure(engine: str, file: Path, option: str) -> Row:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.engine_worker", engine, str(file), option]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{engine} {option} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def spread(values: list[float], form: str = ".2f") -> str:
    """The median, and the least and the greatest of all rounds."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def name(num_requests: int, num_adapters: int) -> str:
    adapters = (
        ("no adapter", "1 adapter")[num_adapters]
        if num_adapters < 2
        else f"{num_adapters} adapters"
    )
    return f"{num_requests} requests, {adapters}"


def main(rounds: int) -> None:
    file = default_model()
    runs = [("hyprstream", "stored"), ("hyprstream", "bfloat16"), ("transformers", "bfloat16")]
    results: dict[str, list[Row]] = {f"{engine} {option}": [] for engine, option in runs}
    for _ in range(rounds):
        for engine, option in runs:
            results[f"{engine} {option}"].append(measure(engine, file, option))
    print(
        f"\nSmolLM2-135M-Instruct, prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones, "
        f"adapters of rank {RANK} on every linear layer\n({rounds} interleaved rounds, 1 thread, "
        "processor seconds; tokens per second of all requests together)\n"
    )
    print(f"| decode | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for case in CASES:
        key = "{}x{}".format(*case)
        cells = [spread([row[key] for row in rows], ".0f") for rows in results.values()]
        print(f"| {name(*case)} | {' | '.join(cells)} |")
    peers = results["transformers bfloat16"]
    for option in ("stored", "bfloat16"):
        compare(option, results[f"hyprstream {option}"], peers)
    sys.stdout.flush()


def compare(option: str, rows: list[Row], peers: list[Row]) -> None:
    """Print ratios within each round, and what single measures came to."""

    def each(value: Callable[[Row], float], form: str = ".2f", of: list[Row] = rows) -> str:
        return spread([value(row) for row in of], form)

    def cost(case: str, base: str) -> Callable[[Row], float]:
        return lambda row: 100 * (1 - row[case] / row[base])

    def gain(many: str, one: str) -> Callable[[Row], float]:
        return lambda row: row[many] / row[one]

    print(f"\n| hyprstream {option} | |\n|---|---|")
    for n in (8, 16):
        print(f"| {n} requests / 1 request | {each(gain(f'{n}x0', '1x0'))} |")
        for a in (1, 8):
            percent = cost(f"{n}x{a}", f"{n}x0")
            print(
                f"| cost of {name(n, a)}, % | {each(percent, '.1f')}; "
                f"transformers + PEFT {each(percent, '.1f', peers)} |"
            )
    for n, a in CASES:
        key = f"{n}x{a}"
        ratios = [mine[key] / other[key] for mine, other in zip(rows, peers, strict=True)]
        print(f"| / transformers + PEFT, {name(n, a)} | {spread(ratios)} |")
    print(
        f"| prefix of 512 tokens cached: first token sooner by | "
        f"{each(gain('prefix_cold_s', 'prefix_hit_s'), '.1f')} x |\n"
        f"| longest step while 1024 tokens come in, whole | "
        f"{each(lambda row: 1000 * row['longest_step_whole_s'], '.0f')} ms |\n"
        f"| the same, 64 tokens per step | "
        f"{each(lambda row: 1000 * row['longest_step_chunked_s'], '.0f')} ms |\n"
        f"| decode of text that repeats, with drafts / without | "
        f"{each(gain('speculation_drafts', 'speculation_plain'))} |\n"
        "| outside the model at 16 requests, per step | "
        f"{each(lambda row: row['overhead_ms'])} ms |"
    )
