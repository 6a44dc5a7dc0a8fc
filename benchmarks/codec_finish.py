"""Rows of training through rounding, beside as much training without it."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.codec_table import Table, row
from benchmarks.trained import (
    CACHE,
    LATER,
    Factors,
    Task,
    continued,
    trained_longer,
)
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from hyprstream.train.config import FinishConfig
from hyprstream.train.finish import Finish
from hyprstream.train.sample import Sample
from hyprstream.vdb.codecs import neural


@dataclass(frozen=True, slots=True, kw_only=True)
class Finishing:
    """One more training of as many steps as the first, the last of them through rounding.

    Attributes:
        coarseness: Of `FinishConfig`.
        rate_weight: Of `FinishConfig`.
        plain_share: Share of the steps that are taken before, without rounding.
        learning_rate: Of the steps through rounding.
    """

    coarseness: float
    rate_weight: float
    plain_share: float = 0.0
    learning_rate: float = 0.025

    @property
    def name(self) -> str:
        plain = f", {self.plain_share:.0%} of the steps plain" if self.plain_share else ""
        return f"finish, coarseness {self.coarseness}, weight {self.rate_weight}{plain}"


def add_finishes(
    table: Table, factors: Factors, finishings: Sequence[Finishing], *, lr: float
) -> None:
    """Train on without and with rounding, equally long; *own* is of what the former reaches.

    Args:
        table: Where rows go.
        factors: The adapter as it was trained.
        finishings: One row each.
        lr: Of training without rounding.
    """
    longer = table.task.tensors_loss(trained_longer(table.task, factors, lr=lr))
    steps = table.task.budget.steps
    row(f"(float32, {steps} more steps)", "", "", "", f"{table.share(longer):.2f}", "100",
        "", "", "")  # fmt: skip
    for finishing in finishings:
        data = finished(table.task, factors, finishing, lr=lr)
        table.add(f"`neural`, {finishing.name}", len(data), neural.decode(data), own=longer)


def finished(
    task: Task, factors: Factors, finishing: Finishing, *, lr: float, seed: int = 0
) -> bytes:
    """Train on, at last through rounding; or take the cache's stream."""
    budget = task.budget
    num_plain = round(budget.steps * finishing.plain_share)
    form = f"{finishing.coarseness}-{finishing.rate_weight}-{finishing.learning_rate}"
    file = CACHE / f"{task.name}-finish-{form}-{num_plain}-{budget.steps}-{seed}.hyrd"
    if not file.exists():
        config = FinishConfig(
            coarseness=finishing.coarseness,
            rate_weight=finishing.rate_weight,
            learning_rate=finishing.learning_rate,
            num_steps=budget.steps - num_plain,
            batch_tokens=budget.batch * budget.length,
        )
        if num_plain:
            factors = continued(task, factors, steps=num_plain, lr=lr, seed=seed + LATER)
        weights = LoraWeights({path: LowRank(a, b) for path, (a, b) in factors.items()})
        finish = Finish(task.model, weights, config)
        coming = task.batches(seed + LATER + bool(num_plain))
        for _, windows in zip(range(config.num_steps), coming, strict=False):
            finish.accumulate([Sample.text(window.tolist()) for window in windows])
            finish.apply()
        file.write_bytes(neural.encode_quantised(finish.quantised()))
    return file.read_bytes()
