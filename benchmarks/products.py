"""Products of few rows with dense weights in bfloat16, beside torch and a plain read of memory.

One thread, processor seconds; within a round everything is measured in turn, and what is printed
are medians of the ratios within rounds, with the least and the most. Weights are picked at random
from more of them than caches hold.
"""

import ctypes
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hyprstream.kernels.native import KINDS, Instructions
from hyprstream.models import native
from hyprstream.models.quant import DenseWeight, differentiable

# Of Qwen3-0.6B: outputs and inputs.
SHAPES = ((2048, 1024), (3072, 1024), (1024, 3072), (151936, 1024))
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_BYTES = 600 << 20
_SOURCE = """
#include <cstdint>
typedef uint64_t Line __attribute__((vector_size(64)));
extern "C" __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
uint64_t read_all(const char* p, int64_t size) {
    Line all[4] = {};
    for (int64_t i = 0; i + 256 <= size; i += 256)
        for (int64_t j = 0; j < 4; ++j) {
            __builtin_prefetch(p + i + j * 64 + 8192);
            Line line;
            __builtin_memcpy(&line, p + i + j * 64, sizeof line);
            all[j] |= line;
        }
    const Line sum = all[0] | all[1] | all[2] | all[3];
    return sum[0] | sum[1] | sum[2] | sum[3] | sum[4] | sum[5] | sum[6] | sum[7];
}
"""


def plain_read(folder: Path) -> Callable[[torch.Tensor], None]:
    """Compile a function that reads a tensor and does nothing else."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise SystemExit("a plain read of memory needs g++")
    (folder / "read.cpp").write_text(_SOURCE)
    command = [compiler, "-O3", "-Wno-psabi", "-shared", "-fPIC", "-o", str(folder / "read.so")]
    subprocess.run([*command, str(folder / "read.cpp")], check=True)
    function = ctypes.CDLL(str(folder / "read.so")).read_all
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return lambda tensor: function(tensor.data_ptr(), tensor.nbytes)


def ways(x: torch.Tensor, y: torch.Tensor) -> Mapping[str, Callable[[DenseWeight], object]]:
    """Return what multiplies the rows `x`, by name; the kernel writes to `y`."""
    kernels = native.kernels()
    if kernels is None:
        raise SystemExit("no kernels were compiled")

    def kernel(instructions: Instructions) -> Callable[[DenseWeight], None]:
        def multiply(weight: DenseWeight) -> None:
            ends = weight.address, y.data_ptr(), None, None, None, None
            how = KINDS["bfloat16"], x.data_ptr(), len(x), 1, instructions
            kernels.dense_products(*how, *ends)

        return multiply

    def in_torch(weight: DenseWeight) -> object:
        if len(x) == 1:
            return torch.mv(weight.tensor, x[0])
        return torch.nn.functional.linear(x, weight.tensor)

    found = {
        each.name.lower(): kernel(each)
        for each in (Instructions.AVX512, Instructions.AVX2)
        if each in kernels.available
    }
    return {
        **found,
        "torch": in_torch,
        "float32": lambda weight: differentiable._unpacked(weight, x),
    }


def measure(shape: tuple[int, int], rows: int, rounds: int, read: Callable[..., None]) -> str:
    """Return a line of the table."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).bfloat16()
    weights = [DenseWeight(base.clone()) for _ in range(max(2, _BYTES // base.nbytes))]
    x = torch.randn(rows, shape[1], generator=generator).bfloat16()
    y = torch.empty(rows, shape[0], dtype=torch.bfloat16)
    every = {"read": lambda weight: read(weight.tensor), **ways(x, y)}
    times: dict[str, list[float]] = {name: [] for name in every}
    calls = max(2, len(weights) // max(1, rows // 4))
    for _ in range(rounds):
        for name, way in every.items():
            chosen = random.choices(weights, k=calls)  # noqa: S311
            start = time.process_time()
            for weight in chosen:
                way(weight)
            times[name].append((time.process_time() - start) / calls)
    cells = [f"{shape[1]} to {shape[0]}", str(rows)]
    cells.append(f"{base.nbytes / statistics.median(times['read']) / 1e9:.1f}")
    for name in list(every)[1:]:
        shares = [one / other for one, other in zip(times["read"], times[name], strict=True)]
        speed = 2 * rows * base.numel() / statistics.median(times[name]) / 1e9
        spread = f"{min(shares):.2f} to {max(shares):.2f}"
        cells.append(f"{statistics.median(shares):.2f} ({spread}), {speed:.0f}")
    return f"| {' | '.join(cells)} |"


def main(rounds: int) -> None:
    """Print, for each way, the share of a plain read's speed, and GFLOP/s."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        read = plain_read(Path(temporary))
        names = list(ways(torch.empty(1, 1), torch.empty(1, 1)))
        print(f"\n| weights | rows | read GB/s | {' | '.join(names)} |")
        print(f"|{'---|' * (3 + len(names))}")
        for shape in SHAPES:
            for rows in ROWS:
                print(measure(shape, rows, rounds, read), flush=True)
