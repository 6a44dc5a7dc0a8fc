"""Codes of adapters: bytes, what is kept of what was learnt, and time, on trained adapters.

Learning rates were chosen by the loss over text that no row is judged by (`Task`, tuning).
Rows are of the first seed; the central ones come again for several. `rounds` is of the times.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.codec_finish import Finishing, add_finishes, finished
from benchmarks.codec_kinds import Case, add_kinds, low_rank, sparse, tiny
from benchmarks.codec_public import public_adapters, speed
from benchmarks.codec_table import (
    Table,
    csr_bytes,
    halved,
    heading,
    peft_bytes,
    pruned,
    row,
)
from benchmarks.codec_versions import trained_versions, versions
from benchmarks.trained import (
    CACHE,
    Task,
    smollm2,
    stories,
    to_tensors,
    trained_adapter,
    trained_longer,
)
from hyprstream.vdb.codecs import neural
from hyprstream.vdb.learned import frame
from hyprstream.vdb.learned.rate import Target

SHARES = (0.1, 0.05, 0.01)  # of values that pruning keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured on one task.

    Attributes:
        errors: Of the learned code without data.
        kinds: Sparse and tiny adapters.
        central: Those of them that come again for all seeds, at their last error.
        finishes: Trainings through rounding.
        longer_lr: Of training on without rounding, the best of those tried.
        version_lr: Of the steps between versions.
        num_versions: Updates in the chain of versions.
        shown: Versions whose loss is taken.
        chain: Target of each chain.
        seeds: Of the central rows.
    """

    errors: Sequence[float]
    kinds: Sequence[Case]
    central: Sequence[Case]
    finishes: Sequence[Finishing]
    longer_lr: float
    version_lr: float
    num_versions: int
    shown: Sequence[int]
    chain: Sequence[Target]
    seeds: Sequence[int]


STORIES = Plan(
    errors=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6),
    kinds=[
        low_rank(0.9, 4e-3, (0.1, 0.15)),
        low_rank(0.95, 4e-3, (0.1, 0.15)),
        low_rank(0.99, 1e-2, (0.15, 0.2)),
        sparse(0.9, 1e-2, (0.1, 0.15)),
        sparse(0.95, 1e-2, (0.1, 0.15)),
        sparse(0.99, 1e-2, (0.15, 0.2)),
        sparse(0.996, 1e-2, (0.15, 0.2)),
        tiny(24, 3e-2, (0.15, 0.3)),
        tiny(16, 3e-2, (0.1, 0.15, 0.3)),
        tiny(32, 3e-2, (0.15,), sparsity=0.9),
        tiny(32, 3e-2, (0.15,), sparsity=0.95),
        tiny(32, 3e-2, (0.15,), sparsity=0.99),
    ],
    central=[sparse(0.996, 1e-2, (0.15,)), tiny(16, 3e-2, (0.15,))],
    finishes=[
        Finishing(coarseness=1.4, rate_weight=0.02, plain_share=0.5, learning_rate=0.04),
        Finishing(coarseness=2.2, rate_weight=0.05),
        Finishing(coarseness=3.0, rate_weight=0.15),
    ],
    longer_lr=3e-3,
    version_lr=5e-4,
    num_versions=20,
    shown=range(21),
    chain=[Target(error=0.12)],
    seeds=(0, 1, 2),
)
SMOLLM2 = Plan(
    errors=(0.1, 0.15, 0.3, 0.4, 0.6),
    kinds=[
        low_rank(0.99, 5e-3, (0.15, 0.2)),
        tiny(64, 8e-3, (0.3, 0.38)),
    ],
    central=[],
    finishes=[
        Finishing(coarseness=0.65, rate_weight=0.015),
        Finishing(coarseness=0.9, rate_weight=0.02),
    ],
    longer_lr=1.5e-3,
    version_lr=2e-4,
    num_versions=8,
    shown=(1, 8),
    chain=[Target(error=0.12), Target(error=0.15, update_dead_zone=0.6)],
    seeds=(0,),
)


def exact_rows(table: Table) -> None:
    """What needs no learned code."""
    dense = table.dense
    table.add("PEFT file, float32", peft_bytes(dense, np.float32), dense)
    table.add("PEFT file, float16", peft_bytes(dense, np.float16), halved(dense))
    for codec in ("raw", "zstd"):
        table.code(f"`{codec}`", codec, dense)
    for share in SHARES:
        kept = pruned(dense, share)
        table.add(f"largest {share:.0%} of values, CSR + zstd", csr_bytes(kept), kept)


def coded_rows(table: Table, errors: Sequence[float]) -> None:
    """The learned code without data."""
    for error in errors:
        data = table.code(f"`neural`, error {error}", "neural", table.dense,
                          target=Target(error=error))  # fmt: skip
        if error == 0.15:
            blocks = frame.read(data).blocks
            coded = sum(4 * len(b.states) + 2 * len(b.words) + len(b.bits) for b in blocks)
            share = 100 * (1 - coded / len(data))
            row(f"(of it names, shapes, scales, classes: {share:.1f}%)", *[""] * 8)


def central_rows(task: Task, plan: Plan) -> None:
    """The rows that decide, for several seeds of the training: median, least and most."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in plan.seeds:
        for name, ratio, share in _of_seed(task, plan, seed):
            found.setdefault(name, []).append((ratio, share))
    print(f"\n{task.name}, seeds {', '.join(map(str, plan.seeds))}: median (least to most)")
    heading("code", "float32 / bytes", "kept, %")
    for name, pairs in found.items():
        columns = [[pair[i] for pair in pairs] for i in range(2)]
        row(name, *(f"{np.median(x):.1f} ({min(x):.1f} to {max(x):.1f})" for x in columns))


def _of_seed(task: Task, plan: Plan, seed: int) -> Iterator[tuple[str, float, float]]:
    """Yield of each central row its name, the ratio, and the share kept."""
    factors = trained_adapter(task, seed=seed)
    table = Table(task, to_tensors(factors), 1)
    size = peft_bytes(table.dense, np.float32)

    def judged(name: str, data: bytes, whole: float) -> tuple[str, float, float]:
        loss = task.tensors_loss(neural.decode(data))
        return name, size / len(data), table.share(loss, whole)

    for error in (0.15, 0.3):
        data = neural.encode(table.dense, target=Target(error=error)).data
        yield judged(f"`neural`, error {error}", data, table.dense_loss)
    longer = task.tensors_loss(trained_longer(task, factors, lr=plan.longer_lr, seed=seed))
    for finishing in plan.finishes:
        data = finished(task, factors, finishing, lr=plan.longer_lr, seed=seed)
        yield judged(f"{finishing.name}; of as much training", data, longer)
    for case in plan.central:
        tensors, error = case.tensors(task, seed), case.errors[-1]
        data = neural.encode(tensors, target=Target(error=error)).data
        yield judged(
            f"{case.name}, error {error}; of its own gain", data, task.tensors_loss(tensors)
        )
        yield judged(f"{case.name}, error {error}; of the dense gain", data, table.dense_loss)


def measure(task: Task, plan: Plan, rounds: int) -> None:
    factors = trained_adapter(task)
    table = Table(task, to_tensors(factors), rounds)
    table.start("an adapter of rank 16")
    exact_rows(table)
    coded_rows(table, plan.errors)
    add_finishes(table, factors, plan.finishes, lr=plan.longer_lr)
    add_kinds(table, plan.kinds)
    central_rows(task, plan)
    chain = [table.dense, *trained_versions(task, factors, num_versions=plan.num_versions,
                                            lr=plan.version_lr)]  # fmt: skip
    for target in plan.chain:
        title = f"versions at a rate of {plan.version_lr}"
        versions(task, chain, target, shown=plan.shown, title=title)


def main(rounds: int, *, quick: bool = False) -> None:
    """Measure on stories260K and, unless it has to be quick, on SmolLM2-135M."""
    torch.set_num_threads(1)
    CACHE.mkdir(exist_ok=True)
    measure(stories(), STORIES, rounds)
    public_adapters()
    speed(rounds)
    if not quick:
        measure(smollm2(), SMOLLM2, rounds)
