"""Grids: how fast they are built beside Warp's own builder, and what adapters take in them."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np

from benchmarks.models import QWEN3_06B
from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.layout import pack_tensors
from hyprstream.vdb.nanovdb.files import read_bytes, write_bytes
from hyprstream.vdb.tensors import DType, SparseTensor

NUM_VOXELS = 1_000_000
RANK = 16
Task = Callable[[], object]


def main(rounds: int) -> None:
    build_times(rounds)
    edit_times(rounds)
    sizes()


def build_times(rounds: int) -> None:
    """Print seconds to build an index grid of a million unsorted voxels."""
    if find_spec("warp") is None:
        print("\nGrids: warp-lang is not installed, nothing to compare with")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("WARP_CACHE_PATH", folder)
        import warp as wp

        wp.config.quiet = True
        wp.init()
        print(
            f"\nAn index grid of {NUM_VOXELS:,} unsorted voxels, processor seconds ({rounds} rounds"
        )
        print("with 1 thread, the builders take turns; ours holds the values, too)\n")
        print("| voxels | hyprstream | warp | ratio within a round |\n|---|---|---|---|")
        for name, voxels in clouds().items():
            values = np.arange(NUM_VOXELS, dtype=np.float32)
            points = wp.array(voxels, dtype=wp.vec3i, device="cpu")
            ours, theirs = take_turns(
                rounds,
                partial(SparseGrid.of_coordinates, voxels, values),
                partial(wp.Volume.allocate_by_voxels, points, voxel_size=1.0, device="cpu"),
            )
            ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
            print(f"| {name} | {spread(ours)} | {spread(theirs)} | {spread(ratios)} |")


def clouds() -> dict[str, np.ndarray]:
    """A million different voxels each, shuffled."""
    rng = np.random.default_rng(0)
    shapes = {
        "1 % of a cube of 464": (464, 464, 464),
        "25 % of a sheet of 2048": (2048, 2048, 1),
        "1 % of a sheet of 10240": (10240, 10240, 1),
    }
    found = {}
    for name, shape in shapes.items():
        places = rng.choice(int(np.prod(shape)), NUM_VOXELS, replace=False)
        found[name] = np.stack(np.unravel_index(places, shape), axis=1).astype(np.int32)
    corners = rng.choice(464**3 // 512, NUM_VOXELS // 512, replace=False)
    blocks = np.stack(np.unravel_index(corners, (58, 58, 58)), axis=1) * 8
    full = (blocks[:, None] + np.argwhere(np.ones((8, 8, 8)))).reshape(-1, 3)
    rest = NUM_VOXELS - len(full)
    single = np.array([[4000, 0, 0]]) + np.argwhere(np.ones((1, 1, rest)))
    full = np.concatenate([full, single])
    found["full blocks of 8"] = rng.permutation(full).astype(np.int32)
    return found


def edit_times(rounds: int) -> None:
    """Print seconds to read and to change a grid, and to make and read its files."""
    voxels = clouds()["1 % of a cube of 464"]
    values = np.arange(NUM_VOXELS, dtype=np.float32)
    grid = SparseGrid.of_coordinates(voxels, values)
    plain, packed = write_bytes([grid.buffer], "none"), write_bytes([grid.buffer], "zip")
    tasks: dict[str, Task] = {
        "look all voxels up, in no order": lambda: grid.lookup(voxels),
        "list all coordinates": grid.coordinates,
        "write a file, not compressed": lambda: write_bytes([grid.buffer], "none"),
        "write a file, zip": lambda: write_bytes([grid.buffer], "zip"),
        "read and validate it, not compressed": lambda: read_bytes(plain),
        "read and validate it, zip": lambda: read_bytes(packed),
        "export as a float grid": grid.float_grid,
    }
    print("\nThe cube, processor seconds\n\n| | seconds |\n|---|---|")
    for name, seconds in zip(tasks, take_turns(rounds, *tasks.values()), strict=True):
        print(f"| {name} | {spread(seconds)} |")


def take_turns(rounds: int, *tasks: Task) -> list[list[float]]:
    """Time tasks in turn, each round in the other order; the first round does not count."""
    seconds: list[list[float]] = [[] for _ in tasks]
    for number in range(rounds + 1):
        order = range(len(tasks)) if number % 2 else reversed(range(len(tasks)))
        for task in order:
            started = time.process_time()
            tasks[task]()
            if number:
                seconds[task].append(time.process_time() - started)
    return seconds


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def adapter(dtype: DType, mask: Callable[[tuple[int, int]], np.ndarray]) -> dict[str, SparseTensor]:
    """A sparse adapter on q and v of Qwen3-0.6B: random values where a mask is true."""
    rng = np.random.default_rng(1)
    kind = np.float16 if dtype == "float16" else np.float32
    tensors = {}
    for layer in range(QWEN3_06B["num_hidden_layers"]):
        for name, outputs in (("q", 2048), ("v", 1024)):
            for part, shape in (("a", (1024, RANK)), ("b", (outputs, RANK))):
                values = (rng.standard_normal(shape) * 0.02).astype(kind)
                tensors[f"layers.{layer}.self_attn.{name}_proj/low_rank/{part}"] = (
                    SparseTensor.from_dense(values, dtype, mask(shape))
                )
    return tensors


def masks() -> dict[str, Callable[[tuple[int, int]], np.ndarray]]:
    """Which weights stay: single ones, whole rows, or whole leaves of 512."""
    rng = np.random.default_rng(2)

    def single(share: float):
        return lambda shape: rng.random(shape) < share

    def rows(share: float):
        return lambda shape: np.broadcast_to(rng.random((shape[0], 1)) < share, shape)

    def leaves(share: float):
        return lambda shape: np.repeat(rng.random(shape[0] * shape[1] // 512) < share, 512).reshape(
            shape
        )

    return {
        "10 % at random": single(0.1),
        "1 % at random": single(0.01),
        "1 % of the rows": rows(0.01),
        "10 % in whole leaves": leaves(0.1),
        "1 % in whole leaves": leaves(0.01),
        "all": single(2.0),
    }


def csr_bytes(tensors: dict[str, SparseTensor], value_bytes: int) -> int:
    """Compressed rows with 16-bit columns, each tensor by itself, its long side as columns."""
    total = 0
    for tensor in tensors.values():
        pointers = 4 * (min(tensor.shape) + 1)
        total += pointers + (2 + value_bytes) * tensor.num_active
    return total


def sizes() -> None:
    """Print bytes per active weight in each form."""
    print(f"\nAdapters of rank {RANK} on q and v of Qwen3-0.6B, bytes per weight that is active")
    columns = ("float grid", "index f32", "index f16", "f32 zip", "f16 zip")
    others = ("CSR f32", "CSR f16", "COO f32", "dense f16")
    print(f"\n| active | number | {' | '.join([*columns, *others])} |")
    print("|---|---|" + "---|" * len([*columns, *others]))
    for name in masks():
        wide, half = adapter("float32", masks()[name]), adapter("float16", masks()[name])
        count = sum(tensor.num_active for tensor in wide.values())
        elements = sum(tensor.size for tensor in wide.values())
        cells = [size / count for size in grid_bytes(wide, half)]
        cells += [
            csr_bytes(wide, 4) / count,
            csr_bytes(wide, 2) / count,
            12.0,
            2 * elements / count,
        ]
        print(f"| {name} | {count:,} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")


def grid_bytes(wide: dict[str, SparseTensor], half: dict[str, SparseTensor]) -> Iterator[int]:
    grids = pack_tensors(wide), pack_tensors(half)
    yield len(grids[0].float_grid())
    yield from (len(grid.buffer) for grid in grids)
    yield from (len(write_bytes([grid.buffer], "zip")) for grid in grids)
