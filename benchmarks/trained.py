"""Adapters that are really trained, and how much of what they learnt another one keeps.

A `Task` is a base model, a text that is new to it and held-out windows of it; other windows
are for choosing settings. Training is deterministic on one machine; what it made is kept
under benchmarks/.cache, by name.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import default_model
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.gradients import WeightGradients
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import pack, unpack
from hyprstream.models.attention import PackedAttention
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch, LoraView
from hyprstream.models.load import open_model
from hyprstream.vdb.codecs import zstd
from hyprstream.vdb.tensors import SparseTensor

CACHE = Path(__file__).parent / ".cache"
Factors = dict[str, tuple[Tensor, Tensor]]
LATER = 11  # added to the seed of batches that continue a training
GRADIENT_BATCHES = 8  # by which masks are chosen


def test_data() -> Path:
    folder = os.environ.get("HYPRSTREAM_TEST_DATA")
    if not folder:
        raise SystemExit("set HYPRSTREAM_TEST_DATA to the folder of real test data")
    return Path(folder)


class FactorView:
    """A LoraView of factors that may have gradients."""

    def __init__(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self._factors = factors

    def delta(self, path: str, x: Tensor) -> Tensor | None:
        if path not in self._factors:
            return None
        a, b = self._factors[path]
        return (x @ a.to(x.dtype)) @ b.to(x.dtype)

    def select(self, rows: Tensor) -> LoraView:
        del rows
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long an adapter is trained: steps of `batch` windows of `length` tokens."""

    steps: int
    batch: int
    length: int
    lr: float


class Task:
    """A base model and a text to learn."""

    def __init__(self, name: str, file: Path, *, budget: Budget, num_held_out: int, dtype) -> None:
        self.name = name
        self.budget = budget
        opened = open_model(file)
        model = opened.load(device=torch.device("cpu"), dtype=dtype, expand=True)
        assert isinstance(model, Decoder)
        self.model = model
        self.base = BaseLayers(model.weights)
        self.linears = {p: s for p, s in model.linears.items() if p != "lm_head"}
        text = (test_data() / "corpora" / "tinyshakespeare.txt").read_text()
        ids = torch.tensor(opened.tokenizer().encode(text[: 400 * 2500]))
        cut = int(len(ids) * 0.9)
        self._train, held_out = ids[:cut], ids[cut:]
        windows = held_out[: len(held_out) // (budget.length + 1) * (budget.length + 1)]
        windows = windows.reshape(-1, budget.length + 1)
        self._held_out = windows[:num_held_out]
        self._tuning = windows[num_held_out : 2 * num_held_out]

    def loss(self, windows: Tensor, view: LoraView | None) -> Tensor:
        """Mean loss of the next token, in nats."""
        inputs, targets = windows[:, :-1], windows[:, 1:]
        lengths = [inputs.shape[1]] * len(inputs)
        batch = ForwardBatch(
            token_ids=inputs.reshape(-1),
            positions=torch.arange(inputs.shape[1]).repeat(len(inputs)),
            attention=PackedAttention(self.model.config.attention, lengths),
            lora=view,
        )
        scores = self.model.logits(self.model.forward(batch), view)
        return F.cross_entropy(scores.float(), targets.reshape(-1))

    @torch.no_grad()
    def view_loss(self, view: LoraView | None, *, tuning: bool = False) -> float:
        """The loss over held-out text, or over other text by which settings are chosen."""
        windows = self._tuning if tuning else self._held_out
        parts = [float(self.loss(part, view)) for part in windows.split(4)]
        return sum(parts) / len(parts)

    def tensors_loss(self, tensors: Mapping[str, SparseTensor], *, tuning: bool = False) -> float:
        """The loss with an adapter of any kind, as a store holds it; kept in the cache."""
        digest = hashlib.sha256(repr((self.name, len(self._held_out), tuning)).encode())
        for name, tensor in tensors.items():
            digest.update(repr((name, tensor.shape, tensor.indices is None)).encode())
            digest.update(tensor.values.tobytes())
            digest.update(b"" if tensor.indices is None else tensor.indices.tobytes())
        file = CACHE / f"loss-{digest.hexdigest()[:24]}.txt"
        if not file.exists():
            view = TrainableLora(unpack(tensors, self.base), device=self.model.device)
            file.write_text(repr(self.view_loss(view, tuning=tuning)))
        return float(file.read_text())

    def batches(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        length = self.budget.length
        while True:
            starts = torch.randint(len(self._train) - length - 1, (self.budget.batch,),
                                   generator=generator)  # fmt: skip
            yield torch.stack([self._train[s : s + length + 1] for s in starts.tolist()])


def stories() -> Task:
    return Task(
        "stories260K",
        test_data() / "stories260K" / "hf",
        budget=Budget(steps=150, batch=4, length=256, lr=4e-3),
        num_held_out=48,
        dtype=torch.float32,
    )


def smollm2() -> Task:
    return Task(
        "SmolLM2-135M",
        default_model(),
        budget=Budget(steps=48, batch=2, length=256, lr=2e-3),
        num_held_out=12,
        dtype=torch.float32,
    )


def new_factors(task: Task, rank: int, seed: int) -> Factors:
    """As PEFT begins: A uniform, B zero; alpha is twice the rank and folded into both."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for path, (outputs, inputs) in task.linears.items():
        bound = math.sqrt(2) / math.sqrt(inputs)
        a = (torch.rand(inputs, rank, generator=generator) * 2 - 1) * bound
        factors[path] = (a.requires_grad_(), torch.zeros(rank, outputs).requires_grad_())
    return factors


def train(
    task: Task,
    parameters: Sequence[Tensor],
    view: LoraView,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> None:
    """Train in place: AdamW, a short warm-up, then down to a quarter along a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0)
    for step, windows in zip(range(steps), task.batches(seed), strict=False):
        done = step / steps
        rate = 0.25 + 0.75 * (1 + math.cos(math.pi * done)) / 2
        optimizer.param_groups[0]["lr"] = lr * rate * min(1.0, (step + 1) / 5)
        task.loss(windows, view).backward()
        optimizer.step()
        optimizer.zero_grad()


def trained_adapter(
    task: Task, *, rank: int = 16, steps: int | None = None, seed: int = 0
) -> Factors:
    """Train an adapter on every linear layer, or take it from the cache."""
    steps = task.budget.steps if steps is None else steps
    file = CACHE / f"{task.name}-r{rank}-{steps}-{seed}.npz"
    if file.exists():
        stored = np.load(file)
        return {
            path: (torch.from_numpy(stored[f"{path}/a"]), torch.from_numpy(stored[f"{path}/b"]))
            for path in task.linears
        }
    factors = new_factors(task, rank, seed)
    parameters = [tensor for pair in factors.values() for tensor in pair]
    train(task, parameters, FactorView(factors), steps=steps, lr=task.budget.lr, seed=seed + 1)
    detached = copied(factors)
    CACHE.mkdir(exist_ok=True)
    arrays = {
        f"{path}/{side}": tensor.numpy()
        for path, pair in detached.items()
        for side, tensor in zip("ab", pair, strict=True)
    }
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes a flag by keyword
    return detached


def trained_longer(
    task: Task, factors: Factors, *, lr: float, seed: int = 0
) -> dict[str, SparseTensor]:
    """Train a dense adapter once more as long as before, or take it from the cache."""
    steps = task.budget.steps
    return cached(
        f"{task.name}-longer-{lr}-{steps}-{seed}",
        lambda: to_tensors(continued(task, factors, steps=steps, lr=lr, seed=seed + LATER)),
    )


def continued(task: Task, factors: Factors, *, steps: int, lr: float, seed: int) -> Factors:
    """Train a dense adapter on, with a schedule of its own."""
    more = {path: (a.clone().requires_grad_(), b.clone().requires_grad_())
            for path, (a, b) in factors.items()}  # fmt: skip
    parameters = [tensor for pair in more.values() for tensor in pair]
    train(task, parameters, FactorView(more), steps=steps, lr=lr, seed=seed)
    return copied(more)


def trained_kind(
    task: Task, spec: LoraSpec, *, lr: float, seed: int = 0, steps: int | None = None
) -> dict[str, SparseTensor]:
    """Train a fresh adapter of any kind, as long as a dense one, or take it from the cache."""
    steps = task.budget.steps if steps is None else steps
    form = f"{spec.kind}-r{spec.rank}-s{spec.sparsity}-{spec.mask}"

    def make() -> dict[str, SparseTensor]:
        gradients = weight_gradients(task) if spec.mask == "gradient" else None
        fresh = create(spec, task.linears, seed=seed, base=task.base, gradients=gradients)
        scales = {path: spec.scale_of(path) for path in fresh.modules}
        lora = TrainableLora(fresh, device=task.model.device, scales=scales)
        train(task, list(lora.parameters().values()), lora, steps=steps, lr=lr, seed=seed + 1)
        return pack(lora.snapshot())

    return cached(f"{task.name}-{form}-{lr}-{steps}-{seed}", make)


@cache
def weight_gradients(task: Task) -> dict[str, Tensor]:
    """The gradient of the loss for W, over a few batches."""
    watch = WeightGradients(task.linears, task.model.device)
    for _, windows in zip(range(GRADIENT_BATCHES), task.batches(77), strict=False):
        task.loss(windows, watch).backward()
    return watch.sums


def cached(name: str, make: Callable[[], Mapping[str, SparseTensor]]) -> dict[str, SparseTensor]:
    """Return tensors from the cache, or make them and keep them there, exactly."""
    file = CACHE / f"{name}.hyrz"
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        file.write_bytes(zstd.encode(make()).data)
    return zstd.decode(file.read_bytes())


def copied(factors: Factors) -> Factors:
    return {path: (a.detach().clone(), b.detach().clone()) for path, (a, b) in factors.items()}


def to_tensors(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, SparseTensor]:
    """Name the factors as a store does."""
    return {
        f"{path}/low_rank/{side}": SparseTensor.from_dense(tensor.numpy(), "float32")
        for path, pair in factors.items()
        for side, tensor in zip("ab", pair, strict=True)
    }


def to_factors(tensors: Mapping[str, SparseTensor]) -> Factors:
    paths = dict.fromkeys(name.rsplit("/", 2)[0] for name in tensors)
    dense = {name: torch.from_numpy(tensor.to_dense()) for name, tensor in tensors.items()}
    return {p: (dense[f"{p}/low_rank/a"], dense[f"{p}/low_rank/b"]) for p in paths}
