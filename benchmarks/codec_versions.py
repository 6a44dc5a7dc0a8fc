"""Successive versions of one adapter, each as an update of what was decoded before."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.codec_table import Tensors, heading, peft_bytes, row
from benchmarks.trained import CACHE, Factors, FactorView, Task, cached, copied, to_tensors
from hyprstream.vdb.codecs import neural
from hyprstream.vdb.learned.rate import Target

STEPS_PER_VERSION = 5


def trained_versions(
    task: Task, factors: Factors, *, num_versions: int, lr: float, seed: int = 9
) -> list[Tensors]:
    """Train on at a constant rate, and keep the adapter every few steps; or take the cache's."""
    names = [f"{task.name}-version-{lr}-{seed}-{number}" for number in range(num_versions)]
    if not all((CACHE / f"{name}.hyrz").exists() for name in names):
        current = {path: (a.clone().requires_grad_(), b.clone().requires_grad_())
                   for path, (a, b) in factors.items()}  # fmt: skip
        parameters = [tensor for pair in current.values() for tensor in pair]
        optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0)
        batches, view = task.batches(seed), FactorView(current)
        for name in names:
            for _ in range(STEPS_PER_VERSION):
                task.loss(next(batches), view).backward()
                optimizer.step()
                optimizer.zero_grad()
            cached(name, partial(to_tensors, copied(current)))
    return [cached(name, dict) for name in names]


def moved(tensors: Tensors, before: Tensors) -> float:
    """How far values moved, as a share of them."""
    pairs = [(tensors[name].values, before[name].values) for name in tensors]
    change = sum(float(np.square(now - then, dtype=np.float64).sum()) for now, then in pairs)
    whole = sum(float(np.square(then, dtype=np.float64).sum()) for _, then in pairs)
    return float(np.sqrt(change / whole))


def versions(
    task: Task, chain: Sequence[Tensors], target: Target, *, shown: Sequence[int], title: str
) -> None:
    """Code a chain whose first version is the key frame; judge some of them."""
    base = task.tensors_loss({})
    size = peft_bytes(chain[0], np.float32)
    print(f"\n{task.name}: {title}, {STEPS_PER_VERSION} steps a version; key frame at error "
          f"{target.error}, dead zone {target.update_dead_zone}")  # fmt: skip
    heading("version", "stream", "bytes", "float32 / bytes", "moved, %", "kept, %", "error")
    parent, sizes, kept = None, [], []
    for number, tensors in enumerate(chain):
        encoded = neural.encode(tensors, target=target, parent=parent)
        parent = neural.decode_quantised(encoded.data, parent=parent)
        if number:
            sizes.append(len(encoded.data))
        share = ""
        if number in shown:
            whole, loss = task.tensors_loss(tensors), task.tensors_loss(parent.tensors())
            kept.append(100 * (base - loss) / (base - whole))
            share = f"{kept[-1]:.2f}"
        change = f"{100 * moved(tensors, chain[number - 1]):.1f}" if number else ""
        row(number, "update" if encoded.report.is_update else "key", len(encoded.data),
            f"{size / len(encoded.data):.0f}", change, share,
            f"{encoded.report.relative_error:.3f}")  # fmt: skip
    print(f"updates are {size / max(sizes):.0f} to {size / min(sizes):.0f} times smaller than "
          f"the file, all together {size * len(sizes) / sum(sizes):.0f} times; the least share "
          f"is {min(kept):.2f}%")  # fmt: skip
