"""What sparsity costs: how much of a dense adapter's gain sparse ones reach, equally trained.

On stories260K, all linear layers, 150 steps of 1,024 tokens of Shakespeare, one seed. The gain
is how far the held-out loss falls below that of the base model.
"""

from itertools import product

import torch

from benchmarks.trained import Task, stories, train
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora

_SPARSITIES = (0.9, 0.95, 0.99)
_RATES = {"low_rank": 4e-3, "sparse": 1e-2}  # single elements of W move in smaller steps


def main(rounds: int) -> None:
    """Train each once; losses do not vary between rounds."""
    del rounds
    torch.set_num_threads(1)
    task = stories()
    base = task.view_loss(None)
    dense, num_values = _trained(task, "low_rank", 0.0)
    print(f"base {base:.3f}, dense rank 16 {dense:.3f} with {num_values:,} values")
    for kind, sparsity in product(_RATES, _SPARSITIES):
        loss, num_values = _trained(task, kind, sparsity)
        gain = 100 * (base - loss) / (base - dense)
        print(f"{kind} {sparsity:.0%}: {num_values:,} values, loss {loss:.3f}, gain {gain:.1f}%")


def _trained(task: Task, kind: str, sparsity: float) -> tuple[float, int]:
    """Train an adapter; return its held-out loss and how many values it has."""
    spec = LoraSpec(rank=16, alpha=32, kind=kind, sparsity=sparsity, targets=tuple(task.linears))
    fresh = create(spec, task.linears, base=BaseLayers(task.model.weights))
    scales = {path: spec.scale_of(path) for path in task.linears}
    lora = TrainableLora(fresh, device=torch.device("cpu"), scales=scales)
    parameters = list(lora.parameters().values())
    train(task, parameters, lora, steps=task.budget.steps, lr=_RATES[kind], seed=1)
    return task.view_loss(lora), sum(parameter.numel() for parameter in parameters)
