"""Codes of adapters: bytes, what is kept of what was learnt, and time, on trained adapters.

A share is 100 (base - coded) / (base - dense), of losses on held-out text. Ratios are those of
the whole stream to a PEFT file of the same adapter, in float32 and in float16. Times are
processor seconds of one thread. One seed; `rounds` is of the times.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.numpy import load_file, save

from benchmarks.trained import (
    CACHE,
    Factors,
    FactorView,
    Task,
    smollm2,
    stories,
    test_data,
    to_factors,
    to_tensors,
    train,
    trained_adapter,
)
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from hyprstream.train.config import FinishConfig
from hyprstream.train.finish import Finish
from hyprstream.train.sample import Sample
from hyprstream.vdb.codecs import load, neural
from hyprstream.vdb.learned import Quantised, frame
from hyprstream.vdb.learned.rate import Target
from hyprstream.vdb.tensors import SparseTensor

Tensors = Mapping[str, SparseTensor]
ERRORS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
# Coarseness of the step and weight of the rate.
FINISHES = ((1.5, 0.02), (2.5, 0.06), (3.5, 0.15))
NUM_VERSIONS = 20
STEPS_PER_VERSION = 5
PUBLIC = ("gpt2_r8_cattn_cproj", "open-calm-1b_r1_qkv", "privacy-filter_r16_tokcls")
SHAPES_06B = {
    "self_attn.q_proj": (1024, 2048),
    "self_attn.k_proj": (1024, 1024),
    "self_attn.v_proj": (1024, 1024),
    "self_attn.o_proj": (2048, 1024),
    "mlp.gate_proj": (1024, 3072),
    "mlp.up_proj": (1024, 3072),
    "mlp.down_proj": (3072, 1024),
}


def peft_bytes(tensors: Tensors, dtype: type) -> int:
    """Size of the file that PEFT writes."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        path, side = name.split("/")[0], "AB"[name.endswith("/b")]
        key = f"base_model.model.model.{path}.lora_{side}.weight"
        arrays[key] = np.ascontiguousarray(tensor.to_dense().T).astype(dtype)
    return len(save(arrays))


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of the rounds."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def pruned_csr_bytes(tensors: Tensors, share: float) -> tuple[int, dict[str, SparseTensor]]:
    """Keep the largest share of values of each tensor; rows, columns and values through zstd."""
    kept, parts = {}, []
    for name, tensor in tensors.items():
        dense = tensor.to_dense()
        count = max(1, int(share * dense.size))
        mask = np.abs(dense) >= np.partition(np.abs(dense).ravel(), -count)[-count]
        columns = np.nonzero(mask)[1].astype(np.uint16)
        parts += [np.cumsum(mask.sum(axis=1)).astype(np.uint32).tobytes(), columns.tobytes()]
        parts.append(dense[mask].astype(np.float32).tobytes())
        kept[name] = SparseTensor.from_dense(np.where(mask, dense, 0), "float32")
    return len(zstandard.ZstdCompressor(level=19).compress(b"".join(parts))), kept


class Table:
    """The rows about one trained adapter."""

    def __init__(self, task: Task, factors: Factors, rounds: int) -> None:
        self.task = task
        self.tensors = to_tensors(factors)
        self._rounds = rounds
        self._base = task.held_out_loss(None)
        self._dense = task.held_out_loss(factors)
        self._sizes = [peft_bytes(self.tensors, dtype) for dtype in (np.float32, np.float16)]
        num_values = sum(tensor.size for tensor in self.tensors.values())
        print(f"\n{task.name}, rank 16 on {len(factors)} layers, {num_values} values; held-out")
        print(f"loss {self._base:.3f} without, {self._dense:.3f} with the adapter\n")
        row("code", "bytes", "/ float32", "/ float16", "kept, %", "error", "encode, s", "decode, s")
        row(*["---"] * 8)
        row("PEFT file, float32", self._sizes[0], "1.0", "0.5", "100", "0", "", "")

    def kept(self, tensors: Tensors) -> float:
        loss = self.task.held_out_loss(to_factors(tensors))
        return 100 * (self._base - loss) / (self._base - self._dense)

    def add(self, name: str, size_bytes: int, tensors: Tensors, *others: object) -> None:
        ratios = [f"{size / size_bytes:.1f}" for size in self._sizes]
        row(name, size_bytes, *ratios, f"{self.kept(tensors):.2f}", *others)

    def code(self, name: str, codec: str, **options: Any) -> bytes:
        module: Any = load(codec)
        encoded = module.encode(self.tensors, **options)
        encode_s = seconds(lambda: module.encode(self.tensors, **options), self._rounds)
        decode_s = seconds(lambda: module.decode(encoded.data), self._rounds)
        error = f"{encoded.report.relative_error:.3f}"
        decoded = module.decode(encoded.data)
        self.add(name, len(encoded.data), decoded, error, f"{encode_s:.2f}", f"{decode_s:.3f}")
        return encoded.data


def codes(task: Task, factors: Factors, rounds: int) -> Table:
    table = Table(task, factors, rounds)
    for codec in ("raw", "zstd"):
        table.code(codec, codec)
    for share in (0.1, 0.01):
        size_bytes, kept = pruned_csr_bytes(table.tensors, share)
        table.add(f"largest {share:.0%} of values, CSR + zstd", size_bytes, kept, "", "", "")
    for error in ERRORS:
        data = table.code(f"neural, error {error}", "neural", target=Target(error=error))
        if error == 0.15:
            print_shares(data)
    return table


def print_shares(data: bytes) -> None:
    """What describes the integers, as a share: the most that a better model of it could win."""
    blocks = frame.read(data).blocks
    coded = sum(4 * len(b.states) + 2 * len(b.words) + len(b.bits) for b in blocks)
    row(f"(of it names, shapes, scales, classes: {100 * (1 - coded / len(data)):.1f}%)", *[""] * 7)


def finishes(table: Table, factors: Factors, steps: int) -> None:
    """Training through rounding, and as many more steps of plain training, for comparison."""
    more = {path: (a.clone().requires_grad_(), b.clone().requires_grad_())
            for path, (a, b) in factors.items()}  # fmt: skip
    lr = table.task.budget.lr / 4
    parameters = [tensor for pair in more.values() for tensor in pair]
    train(table.task, parameters, FactorView(more), steps=steps, lr=lr, seed=11)
    detached = {path: (a.detach(), b.detach()) for path, (a, b) in more.items()}
    row(f"(float32, {steps} more steps)", "", "", "", f"{table.kept(to_tensors(detached)):.2f}",
        "", "", "")  # fmt: skip
    for coarseness, weight in FINISHES:
        quantised = finished(
            table.task,
            factors,
            FinishConfig(
                coarseness=coarseness,
                rate_weight=weight,
                num_steps=steps,
                batch_tokens=table.task.budget.batch * table.task.budget.length,
            ),
        )
        data = neural.encode_quantised(quantised)
        name = f"neural + finish, step {coarseness}, weight {weight}"
        table.add(name, len(data), neural.decode(data), "", "", "")


def finished(task: Task, factors: Factors, config: FinishConfig) -> Quantised:
    """Train through rounding, on the batches that plain training would see."""
    weights = LoraWeights({path: LowRank(a, b) for path, (a, b) in factors.items()})
    finish = Finish(task.model, weights, config)
    for _, windows in zip(range(config.num_steps), task.batches(11), strict=False):
        finish.accumulate([Sample.text(window.tolist()) for window in windows])
        finish.apply()
    return finish.quantised()


def versions(task: Task, factors: Factors, error: float) -> None:
    """Successive versions of one adapter, each as an update of what was decoded before."""
    current = {path: (a.clone().requires_grad_(), b.clone().requires_grad_())
               for path, (a, b) in factors.items()}  # fmt: skip
    parameters = [tensor for pair in current.values() for tensor in pair]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, betas=(0.9, 0.99), weight_decay=0)
    batches, view, base = task.batches(9), FactorView(current), task.held_out_loss(None)
    print(
        f"\n{task.name}: versions of {STEPS_PER_VERSION} steps each, key frame at error {error}\n"
    )
    row("version", "stream", "bytes", "PEFT file float32 / bytes", "kept, %", "error")
    row(*["---"] * 6)
    parent = None
    for number in range(NUM_VERSIONS + 1):
        tensors = to_tensors({p: (a.detach().clone(), b.detach().clone())
                              for p, (a, b) in current.items()})  # fmt: skip
        encoded = neural.encode(tensors, target=Target(error=error), parent=parent)
        parent = neural.decode_quantised(encoded.data, parent=parent)
        loss = task.held_out_loss(to_factors(parent.tensors()))
        true = task.held_out_loss(to_factors(tensors))
        ratio = peft_bytes(tensors, np.float32) / len(encoded.data)
        row(number, "update" if encoded.report.is_update else "key", len(encoded.data),
            f"{ratio:.0f}", f"{100 * (base - loss) / (base - true):.2f}",
            f"{encoded.report.relative_error:.3f}")  # fmt: skip
        for _ in range(STEPS_PER_VERSION):
            task.loss(next(batches), view).backward()
            optimizer.step()
            optimizer.zero_grad()


def public_adapters() -> None:
    """Adapters that others have trained, whose base models are not here: by error alone."""
    print("\nPublic adapters: PEFT file of their values in float32 / bytes\n")
    row("adapter", "values", *(f"error {error}" for error in (0.1, 0.15, 0.36)))
    row(*["---"] * 5)
    for name in PUBLIC:
        tensors = public_adapter(test_data() / "lora" / name)
        size = peft_bytes(tensors, np.float32)
        coded = [neural.encode(tensors, target=Target(error=e)) for e in (0.1, 0.15, 0.36)]
        num_values = sum(tensor.size for tensor in tensors.values())
        row(name, num_values, *(f"{size / len(encoded.data):.1f}" for encoded in coded))


def public_adapter(folder: Path) -> dict[str, SparseTensor]:
    arrays = load_file(folder / "adapter_model.safetensors")
    tensors = {}
    for key, array in arrays.items():
        path, _, side = key.partition(".lora_")
        if side in ("A.weight", "B.weight"):
            dense = np.ascontiguousarray(array.T.astype(np.float32))
            name = f"{path.replace('/', '.')}/low_rank/{side[0].lower()}"
            tensors[name] = SparseTensor.from_dense(dense, "float32")
    return tensors


def speed(rounds: int) -> None:
    """A rank-16 adapter on every linear layer of Qwen3-0.6B, of random numbers."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(28):
        for path, (inputs, outputs) in SHAPES_06B.items():
            fall = rng.lognormal(0, 0.7, 16)
            sides = rng.standard_normal((inputs, 16)) * fall, rng.standard_normal((16, outputs))
            for side, array in zip("ab", sides, strict=True):
                name = f"layers.{layer}.{path}/low_rank/{side}"
                tensors[name] = SparseTensor.from_dense((array / 50).astype(np.float32), "float32")
    encoded = neural.encode(tensors)
    num_values = sum(tensor.size for tensor in tensors.values())
    print(f"\nAn adapter of Qwen3-0.6B's shape, {num_values} values, {len(encoded.data)} bytes: "
          f"encode {seconds(lambda: neural.encode(tensors), 1):.2f} s, "
          f"decode {seconds(lambda: neural.decode(encoded.data), rounds):.3f} s")  # fmt: skip


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    CACHE.mkdir(exist_ok=True)
    task = stories()
    factors = trained_adapter(task)
    finishes(codes(task, factors, rounds), factors, task.budget.steps)
    versions(task, trained_adapter(task, steps=120, seed=2), 0.12)
    public_adapters()
    speed(rounds)
    task = smollm2()
    codes(task, trained_adapter(task), rounds)
