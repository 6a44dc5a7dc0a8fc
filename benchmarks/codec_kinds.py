"""Rows of sparse and tiny adapters, which were trained as such, as long as the dense one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.codec_table import Table, Tensors, csr_bytes
from benchmarks.trained import Task, trained_kind
from hyprstream.lora.spec import LoraSpec
from hyprstream.vdb.learned.rate import Target

SPARSITIES = (0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An adapter to train.

    Attributes:
        name: What its rows are called.
        spec: What it looks like; targets are filled in.
        lr: The learning rate, the best of those tried by the loss over tuning text.
        errors: Errors at which the learned code is asked for it.
    """

    name: str
    spec: LoraSpec
    lr: float
    errors: Sequence[float]

    def tensors(self, task: Task, seed: int = 0) -> Tensors:
        spec = replace(self.spec, targets=tuple(task.linears))
        return trained_kind(task, spec, lr=self.lr, seed=seed)


def add_kinds(table: Table, cases: Sequence[Case], seed: int = 0) -> None:
    """For each case the adapter itself, exactly coded, and the learned code of it."""
    for case in cases:
        tensors = case.tensors(table.task, seed)
        own = table.task.tensors_loss(tensors)
        num_values = sum(tensor.num_active for tensor in tensors.values())
        name = f"{case.name}, {num_values} values"
        if case.spec.sparsity:
            table.add(f"{name}: CSR + zstd", csr_bytes(tensors), tensors, own=own)
            table.code(f"{name}: `raw`", "raw", tensors, own=own)
        else:
            table.code(f"{name}: `zstd`", "zstd", tensors, own=own)
        for error in case.errors:
            target = Target(error=error)
            table.code(f"{name}: error {error}", "neural", tensors, own=own, target=target)


def tiny(rank: int, lr: float, errors: Sequence[float], sparsity: float = 0.0) -> Case:
    """A core in the singular basis of W, its mask by gradient."""
    spec = LoraSpec(rank=rank, alpha=rank, kind="tiny", sparsity=sparsity, mask="gradient")
    name = f"tiny, rank {rank}" + (f", {sparsity:.0%} sparse" if sparsity else "")
    return Case(name=name, spec=spec, lr=lr, errors=errors)


def low_rank(sparsity: float, lr: float, errors: Sequence[float]) -> Case:
    """Rank 16, masks of B by gradient and of A by seed."""
    spec = LoraSpec(rank=16, alpha=32, kind="low_rank", sparsity=sparsity, mask="gradient")
    return Case(name=f"low-rank, {sparsity:.0%} sparse", spec=spec, lr=lr, errors=errors)


def sparse(sparsity: float, lr: float, errors: Sequence[float]) -> Case:
    """Single elements of W, chosen by gradient."""
    spec = LoraSpec(rank=16, alpha=32, kind="sparse", sparsity=sparsity, mask="gradient")
    return Case(name=f"delta of W, {100 * sparsity:g}% sparse", spec=spec, lr=lr, errors=errors)
