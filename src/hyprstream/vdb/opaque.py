"""Coded data in a NanoVDB grid without voxels, so that a file of it is a NanoVDB file, too.

The grid has headers and a root only; other tools see an empty grid with data they do not know.
"""

from collections.abc import Mapping

import numpy as np

from hyprstream.vdb.grid import opaque_channels
from hyprstream.vdb.nanovdb import topology, writer
from hyprstream.vdb.nanovdb.structures import Bytes
from hyprstream.vdb.nanovdb.view import GridView


def opaque_grid(blind: Mapping[str, bytes], *, name: str = "") -> Bytes:
    """Return the grid that holds nothing but `blind`, for `nanovdb.files` to write.

    Raises:
        InvalidAdapterError: A name is too long.
    """
    nowhere = topology.of_keys(np.zeros(0, np.uint64))
    return writer.index_grid(nowhere, opaque_channels(blind), name=name).buffer


def opaque_data(view: GridView) -> dict[str, bytes]:
    """Return what lies behind a grid, by name."""
    return {name: channel.tobytes() for name, channel in view.channels.items()}
