"""Rows of training through rounding, beside as much training without it."""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.codec_table import Table, row
from benchmarks.trained import CACHE, LATER, Factors, Task, trained_longer
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from hyprstream.train.config import FinishConfig
from hyprstream.train.finish import Finish
from hyprstream.train.sample import Sample
from hyprstream.vdb.codecs import neural


def add_finishes(
    table: Table, factors: Factors, configs: Sequence[FinishConfig], *, lr: float, seed: int = 0
) -> None:
    """Train on without and with rounding, equally long; *own* is of what the former reaches.

    Args:
        table: Where rows go.
        factors: The adapter as it was trained.
        configs: One row each.
        lr: Of training without rounding.
        seed: Of the adapter.
    """
    longer = table.task.tensors_loss(trained_longer(table.task, factors, lr=lr, seed=seed))
    steps = table.task.budget.steps
    row(f"(float32, {steps} more steps)", "", "", "", f"{table.share(longer):.2f}", "100",
        "", "", "")  # fmt: skip
    for config in configs:
        data = finished(table.task, factors, config, seed)
        table.add(finish_name(config), len(data), neural.decode(data), own=longer)


def finish_name(config: FinishConfig) -> str:
    return f"`neural` + finish, coarseness {config.coarseness}, weight {config.rate_weight}"


def finished(task: Task, factors: Factors, config: FinishConfig, seed: int = 0) -> bytes:
    """Train through rounding, on the batches of plain training; or take the cache's stream."""
    budget = task.budget
    config = replace(config, num_steps=budget.steps, batch_tokens=budget.batch * budget.length)
    file = CACHE / (f"{task.name}-finish-{config.coarseness}-{config.rate_weight}-"
                    f"{config.learning_rate}-{config.num_steps}-{seed}.hyrd")  # fmt: skip
    if not file.exists():
        weights = LoraWeights({path: LowRank(a, b) for path, (a, b) in factors.items()})
        finish = Finish(task.model, weights, config)
        coming = task.batches(seed + LATER)
        for _, windows in zip(range(config.num_steps), coming, strict=False):
            finish.accumulate([Sample.text(window.tolist()) for window in windows])
            finish.apply()
        file.write_bytes(neural.encode_quantised(finish.quantised()))
    return file.read_bytes()
