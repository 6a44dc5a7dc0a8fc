"""What adapters of each kind cost in a step, for layers of the default model's shape.

Against the layers themselves, in float32 on one core; the kinds take turns, best of the
rounds. The batch's rows lie in as many slots as it says, each with an adapter of its own.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from hyprstream.lora.bank import LoraBank
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.models.forward import LoraView
from hyprstream.models.quant import DenseWeight

SHAPES = {"q": (576, 576), "up": (1536, 576), "down": (576, 1536)}
KINDS = {
    "low_rank r16": LoraSpec(rank=16, alpha=16, targets=tuple(SHAPES)),
    "tiny r16": LoraSpec(rank=16, alpha=16, kind="tiny", targets=tuple(SHAPES)),
    "sparse 99%": LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.99, targets=tuple(SHAPES)),
    "sparse 99% leaf": LoraSpec(
        rank=1, alpha=1, kind="sparse", sparsity=0.99, structure="leaf", targets=tuple(SHAPES)
    ),
    "sparse 95%": LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.95, targets=tuple(SHAPES)),
}
BATCHES = [(1, 1), (8, 1), (8, 8), (64, 8), (512, 1)]


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weights = {path: torch.randn(shape, generator=generator) for path, shape in SHAPES.items()}
    base = BaseLayers({path: DenseWeight(weight) for path, weight in weights.items()})
    print("microseconds per layer")
    for num_rows, num_slots in BATCHES:
        x = {path: torch.randn(num_rows, width) for path, (_, width) in SHAPES.items()}
        works: dict[str, Callable[[str], object]] = {"the layers": partial(_layer, weights, x)}
        for name, spec in KINDS.items():
            bank = _filled(spec, base, num_slots)
            view = bank.view([1 + row * num_slots // num_rows for row in range(num_rows)])
            assert view is not None
            works[name] = partial(_added, view, x)
        times = _measure(works, rounds, repeats=max(5, 2000 // num_rows))
        row = ", ".join(f"{name} {1e6 * best:.0f}" for name, best in times.items())
        print(f"{num_rows} rows in {num_slots} slots: {row}")


def _layer(weights: Mapping[str, Tensor], x: Mapping[str, Tensor], path: str) -> Tensor:
    return x[path] @ weights[path].T


def _added(view: LoraView, x: Mapping[str, Tensor], path: str) -> Tensor | None:
    return view.delta(path, x[path])


def _filled(spec: LoraSpec, base: BaseLayers, num_slots: int) -> LoraBank:
    """Slots with adapters whose parameters are all 1, and so cost what trained ones do."""
    bank = LoraBank(
        SHAPES, num_slots=8, max_rank=64, dtype=torch.float32, device=torch.device("cpu")
    )
    for slot in range(1, num_slots + 1):
        lora = TrainableLora(create(spec, SHAPES, seed=slot, base=base), device=torch.device("cpu"))
        for parameter in lora.parameters().values():
            parameter.data.fill_(1)
        bank.write(slot, lora.snapshot())
    return bank


@torch.inference_mode()
def _measure(
    works: dict[str, Callable[[str], object]], rounds: int, repeats: int
) -> dict[str, float]:
    """Return the seconds that each takes for one layer, the best of the rounds."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(repeats):
                for path in SHAPES:
                    work(path)
            seconds = (time.perf_counter() - start) / repeats / len(SHAPES)
            best[name] = min(best[name], seconds)
    return best
