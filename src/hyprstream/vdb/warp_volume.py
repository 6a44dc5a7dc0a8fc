"""Hands a grid to NVIDIA Warp without copying it, for kernels that walk its tree.

Warp is optional, 149 MB to download. It is imported on the first use.
"""

import importlib
from types import ModuleType
from typing import Any

from hyprstream.errors import UnsupportedError
from hyprstream.vdb.nanovdb.reader import open_grid
from hyprstream.vdb.nanovdb.structures import Bytes


def as_volume(buffer: Bytes) -> Any:  # warp's types are not there without warp
    """Return a `warp.Volume` on the CPU whose memory is that of a grid, and keeps it alive.

    Kernels get `volume.id`; values are `volume.feature_array(0)`, of which `volume_lookup_index`
    gives the place less one. What they change, the grid has. Warp follows the offsets in a tree
    wherever they lead, so the grid is validated first. Volumes share a table in Warp that has no
    lock: make and drop them on one thread.

    Args:
        buffer: A grid, as `SparseGrid.buffer`.

    Raises:
        CorruptGridError: The grid is not sound.
        UnsupportedError: Warp is not installed.
    """
    buffer = open_grid(buffer).buffer
    warp = _warp()
    array = warp.array(buffer, dtype=warp.uint8, device="cpu", copy=False)
    volume = warp.Volume(array, copy=False)
    volume.grid_memory = array  # Volume alone does not keep it
    return volume


def _warp() -> ModuleType:
    try:
        return importlib.import_module("warp")
    except ImportError as error:
        raise UnsupportedError(
            "Warp is not installed here", hint="Run: pip install 'hyprstream[warp]'."
        ) from error
