"""The table of codes of one task: bytes, what is kept of what was learnt, and time.

*Kept* is 100 (base - coded) / (base - dense), of losses on held-out text, where dense is the
uncoded low-rank adapter without masks. *Own* is the same with what the coded adapter itself
was before. Ratios are those of the whole stream to the PEFT file of the dense adapter, in
float32 and in float16. Times are processor seconds of one thread.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import zstandard
from safetensors.numpy import save

from benchmarks.trained import Task
from hyprstream.vdb.codecs import load
from hyprstream.vdb.tensors import SparseTensor

Tensors = Mapping[str, SparseTensor]


def peft_bytes(tensors: Tensors, dtype: type) -> int:
    """Size of the file that PEFT writes of low-rank pairs."""
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


def heading(*cells: str) -> None:
    print(flush=True)
    row(*cells)
    row(*["---"] * len(cells))


def csr_bytes(tensors: Tensors) -> int:
    """Rows, columns and float32 values of the active elements, through Zstandard."""
    parts = []
    for tensor in tensors.values():
        indices = np.arange(tensor.size) if tensor.indices is None else tensor.indices
        height, width = tensor.shape
        starts = np.searchsorted(indices, np.arange(1, height + 1) * width)
        parts += [starts.astype(np.uint32).tobytes(), (indices % width).astype(np.uint16).tobytes()]
        parts.append(tensor.values.astype(np.float32).tobytes())
    return len(zstandard.ZstdCompressor(level=19).compress(b"".join(parts)))


def pruned(tensors: Tensors, share: float) -> dict[str, SparseTensor]:
    """Keep the largest share of values of each tensor."""
    kept = {}
    for name, tensor in tensors.items():
        dense = tensor.to_dense()
        count = max(1, int(share * dense.size))
        mask = np.abs(dense) >= np.partition(np.abs(dense).ravel(), -count)[-count]
        kept[name] = SparseTensor.from_dense(dense, "float32", mask)
    return kept


def halved(tensors: Tensors) -> dict[str, SparseTensor]:
    """Round values to float16, as a PEFT file of half the size holds them."""
    return {
        name: replace(tensor, values=tensor.values.astype(np.float16).astype(np.float32))
        for name, tensor in tensors.items()
    }


class Table:
    """The rows about one task, printed as they come.

    Args:
        task: The base model and its text.
        dense: The adapter by which all are measured.
        rounds: How often times are taken.
    """

    def __init__(self, task: Task, dense: Tensors, rounds: int) -> None:
        self.task = task
        self.dense = dense
        self._rounds = rounds
        self.base_loss = task.tensors_loss({})
        self.dense_loss = task.tensors_loss(dense)
        self._sizes = [peft_bytes(dense, dtype) for dtype in (np.float32, np.float16)]

    def start(self, title: str) -> None:
        num_values = sum(tensor.size for tensor in self.dense.values())
        print(f"\n{self.task.name}, {title}; the dense adapter has {num_values} values on "
              f"{len(self.task.linears)} layers; held-out loss {self.base_loss:.4f} without, "
              f"{self.dense_loss:.4f} with it")  # fmt: skip
        heading("code", "bytes", "/ float32", "/ float16", "kept, %", "own, %", "error",
                "encode, s", "decode, s")  # fmt: skip

    def share(self, loss: float, whole: float | None = None) -> float:
        """Per cent of a gain that a loss keeps: the dense adapter's, or that of another loss."""
        reached = self.dense_loss if whole is None else whole
        return 100 * (self.base_loss - loss) / (self.base_loss - reached)

    def add(
        self,
        name: str,
        size_bytes: int,
        tensors: Tensors,
        *,
        own: float | None = None,
        others: tuple[str, str, str] = ("", "", ""),
    ) -> None:
        """Print a row about decoded tensors; `own` is the loss before they were coded."""
        loss = self.task.tensors_loss(tensors)
        ratios = [f"{size / size_bytes:.1f}" for size in self._sizes]
        kept = f"{self.share(loss):.2f}", "" if own is None else f"{self.share(loss, own):.2f}"
        row(name, size_bytes, *ratios, *kept, *others)

    def code(
        self, name: str, codec: str, tensors: Tensors, *, own: float | None = None, **options: Any
    ) -> bytes:
        """Code an adapter, and print a row about it."""
        module: Any = load(codec)
        encoded = module.encode(tensors, **options)
        encode_s = seconds(lambda: module.encode(tensors, **options), self._rounds)
        decode_s = seconds(lambda: module.decode(encoded.data), self._rounds)
        others = f"{encoded.report.relative_error:.3f}", f"{encode_s:.3f}", f"{decode_s:.3f}"
        self.add(name, len(encoded.data), module.decode(encoded.data), own=own, others=others)
        return encoded.data
