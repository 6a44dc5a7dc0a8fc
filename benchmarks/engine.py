"""Many requests at a time, also with adapters, beside transformers + PEFT, llama.cpp and vLLM.

Each measurement is a process of its own with one thread; the engines take turns, round
after round, and a ratio is taken within each round. vLLM takes part where
`HYPRSTREAM_BENCH_VLLM` names an interpreter that has it; `HYPRSTREAM_BENCH_PARTS` chooses among
`speeds,vllm,overhead`, of which `vllm` is itself and us alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.engine_cases import CASES, NEW_TOKENS, PROMPT_TOKENS, QUERY_VALUE, RANK, Case
from benchmarks.models import default_model, expanded_folder
from benchmarks.vllm_peer import ENVIRONMENT, tell_if_left_out, vllm_python

Row = dict[str, float]
RUNS = (
    ("hyprstream", "stored"),
    ("llama.cpp", "stored"),
    ("hyprstream", "bfloat16"),
    ("transformers", "bfloat16"),
)
PEERS = {
    "transformers bfloat16": "transformers + PEFT",
    "vllm bfloat16": "vLLM",
    "llama.cpp stored": "llama.cpp",
}


def measure(worker: str, *arguments: str, python: str = sys.executable) -> Row:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if python != sys.executable:
        environment |= ENVIRONMENT
    command = [python, "-m", f"benchmarks.{worker}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def spread(values: list[float], form: str = ".2f") -> str:
    """The median, and the least and the greatest of all rounds."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main(rounds: int) -> None:
    file = default_model()
    parts = os.environ.get("HYPRSTREAM_BENCH_PARTS", "speeds,overhead").split(",")
    tell_if_left_out()
    beside = [("vllm", "bfloat16")] if vllm_python() else []
    if "speeds" in parts:
        speeds(file, rounds, [*RUNS, *beside])
    if "vllm" in parts and beside:
        speeds(file, rounds, [("hyprstream", "bfloat16"), *beside])
    if "overhead" in parts:
        overhead(file, rounds)
    sys.stdout.flush()


def overhead(file: Path, rounds: int) -> None:
    """Print what a step of 16 requests takes outside the model."""
    rows = [measure("engine_overhead", str(file), "stored") for _ in range(rounds)]
    print(f"\n| outside the model at 16 requests, ms per step, {rounds} rounds | |\n|---|---|")
    for name in rows[0]:
        print(f"| {name} | {spread([row[name] for row in rows])} |")


def vllm(folder: Path) -> Row:
    """An engine without adapters, and one that takes them."""
    python = vllm_python()
    assert python is not None
    rows = [
        measure("vllm_peer", str(folder), which, python=python) for which in ("without", "with")
    ]
    return rows[0] | rows[1]


def speeds(file: Path, rounds: int, runs: Sequence[tuple[str, str]]) -> None:
    """Print tokens per second beside others."""
    results: dict[str, list[Row]] = {f"{engine} {option}": [] for engine, option in runs}
    with tempfile.TemporaryDirectory() as temporary:
        dense = Path(temporary)
        if "vllm bfloat16" in results:
            expanded_folder(file, dense)
        for _ in range(rounds):
            for engine, option in runs:
                if engine == "vllm":
                    row = vllm(dense)
                else:
                    row = measure("engine_worker", engine, str(file), option)
                results[f"{engine} {option}"].append(row)
    print(
        f"\nSmolLM2-135M-Instruct, prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones, "
        f"adapters of rank {RANK}\n({rounds} interleaved rounds, 1 thread, "
        "processor seconds; tokens per second of all requests together)\n"
    )
    print(f"| decode | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for case in CASES:
        cells = [spread([row[case.key] for row in rows], ".0f") for rows in results.values()]
        print(f"| {case.name} | {' | '.join(cells)} |")
    peers = {PEERS[label]: rows for label, rows in results.items() if label in PEERS}
    if "hyprstream stored" in results:
        compare("stored", results["hyprstream stored"], peers)
    peers.pop("llama.cpp", None)
    compare("bfloat16", results["hyprstream bfloat16"], peers)


def compare(option: str, rows: list[Row], peers: dict[str, list[Row]]) -> None:
    """Print ratios within each round, and what single measures came to."""

    def each(value: Callable[[Row], float], form: str = ".2f", of: list[Row] = rows) -> str:
        return spread([value(row) for row in of], form)

    def cost(case: Case) -> Callable[[Row], float]:
        return lambda row: 100 * (1 - row[case.key] / row[case.base.key])

    def gain(many: str, one: str) -> Callable[[Row], float]:
        return lambda row: row[many] / row[one]

    print(f"\n| hyprstream {option} | |\n|---|---|")
    for n in (8, 16):
        print(f"| {n} requests / 1 request | {each(gain(f'{n}x0', '1x0'))} |")
        for case in (Case(n, 1), Case(n, 8), Case(n, 8, QUERY_VALUE)):
            others = [f"{peer} {each(cost(case), '.1f', of)}" for peer, of in peers.items()]
            print(f"| cost, %: {case.name} | {'; '.join([each(cost(case), '.1f'), *others])} |")
    for peer, of in peers.items():
        for case in CASES:
            pairs = zip(rows, of, strict=True)
            ratios = [mine[case.key] / other[case.key] for mine, other in pairs]
            print(f"| / {peer}, {case.name} | {spread(ratios)} |")
    print(
        f"| prefix of 512 tokens cached: first token sooner by | "
        f"{each(gain('prefix_cold_s', 'prefix_hit_s'), '.1f')} x |\n"
        f"| longest step while 1024 tokens come in, whole | "
        f"{each(lambda row: 1000 * row['longest_step_whole_s'], '.0f')} ms |\n"
        f"| the same, 64 tokens per step | "
        f"{each(lambda row: 1000 * row['longest_step_chunked_s'], '.0f')} ms |\n"
        f"| decode of text that repeats, with drafts / without | "
        f"{each(gain('speculation_drafts', 'speculation_plain'))} |"
    )
