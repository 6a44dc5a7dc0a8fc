"""An adapter as a grid that is worked with: every element in its place, nothing to decode.

The stream is a NanoVDB file with one index grid, which is not compressed: a file of it can be
mapped, edited and walked where it lies. What other codes are measured against.
"""

from collections.abc import Mapping, Sequence

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.codecs import Encoded, measure
from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.layout import pack_tensors, unpack_tensors
from hyprstream.vdb.nanovdb.files import read_bytes, write_bytes
from hyprstream.vdb.nanovdb.view import GridView
from hyprstream.vdb.tensors import SparseTensor

LOSSLESS = True


def encode(tensors: Mapping[str, SparseTensor]) -> Encoded:
    """Write an adapter as a grid.

    Raises:
        InvalidAdapterError: It has more than 2^36 elements, or too many tensors.
    """
    data = write_bytes([pack_tensors(tensors).buffer], "none")
    return Encoded(data=data, report=measure(tensors, data))


def decode(data: bytes) -> dict[str, SparseTensor]:
    """Return the adapter.

    Raises:
        UnsupportedFormatError: The file is of a version of NanoVDB that is not read here.
        CorruptGridError: The bytes are no file of such a grid, or damaged.
    """
    return tensors_of(read_bytes(data))


def tensors_of(grids: Sequence[GridView], file: object = "the grid") -> dict[str, SparseTensor]:
    """Return the adapter that a file's grids hold; values are views of the grid where they can be.

    Raises:
        CorruptGridError: They are not one grid that `encode` made.
    """
    if len(grids) != 1 or grids[0].kind != "index":
        raise CorruptGridError("it is not one index grid", file)
    return unpack_tensors(SparseGrid.of_view(grids[0], file), file)
