"""Reads all that a reader accepted, so that a range or an index beyond the grid would show."""

import numpy as np

from hyprstream.errors import CorruptGridError, UnsupportedFormatError
from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.layout import TABLE, unpack_tensors
from hyprstream.vdb.nanovdb.files import read_bytes
from hyprstream.vdb.nanovdb.reader import open_grid
from hyprstream.vdb.nanovdb.view import GridView

MAX_BYTES = 64 << 20


def read_view(view: GridView) -> None:
    voxels = view.coordinates()
    assert len(voxels) == view.num_voxels
    if view.kind == "index":
        assert (view.index(voxels) == np.arange(1, len(voxels) + 1)).all()
        assert not view.index(np.array([[2**31 - 1, -5, 77]], np.int32) - voxels[:1]).max(
            initial=0
        ) > len(voxels)
    for channel in view.channels.values():
        channel.sum()
    grid = SparseGrid.of_view(view)
    assert (grid.lookup(voxels).tobytes()) == grid.values.tobytes()
    if TABLE in view.channels:
        unpack_tensors(grid)


def problem_of_grid(buffer: np.ndarray) -> str:
    """What is wrong with a grid; empty if it is accepted. Any other error fails the test."""
    try:
        read_view(open_grid(buffer))
    except (CorruptGridError, UnsupportedFormatError) as error:
        return _message(error)
    return ""


def problem_of_file(data: bytes) -> str:
    """What is wrong with a file; empty if it is accepted. Any other error fails the test."""
    try:
        for view in read_bytes(data, "a file", MAX_BYTES):
            read_view(view)
    except (CorruptGridError, UnsupportedFormatError) as error:
        return _message(error)
    return ""


def _message(error: Exception) -> str:
    message = str(error)
    assert message
    assert len(message) < 1000
    assert "\n" not in message
    return message
