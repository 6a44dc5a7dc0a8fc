"""Tensors as they are: what other codes are measured against."""

from collections.abc import Mapping

from hyprstream.vdb import listing
from hyprstream.vdb.codecs import Encoded, measure
from hyprstream.vdb.tensors import SparseTensor

LOSSLESS = True


def encode(tensors: Mapping[str, SparseTensor]) -> Encoded:
    """Write an adapter as it is."""
    data = listing.write(tensors)
    return Encoded(data=data, report=measure(tensors, data))


def decode(data: bytes) -> dict[str, SparseTensor]:
    """Return the adapter.

    Raises:
        CorruptGridError: The bytes are no such list of tensors.
    """
    return listing.read(data)
