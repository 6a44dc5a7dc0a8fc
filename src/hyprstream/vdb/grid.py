"""Active voxels of a 3-D lattice with one value each: a NanoVDB grid that is worked with.

The grid is one buffer: an index grid (`ValueOnIndex`) with the values in a channel behind it. The
buffer is what files hold, what native code walks, and what `values` is a view of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError, InvalidAdapterError
from hyprstream.vdb.nanovdb import structures, topology, writer
from hyprstream.vdb.nanovdb.channels import Channel
from hyprstream.vdb.nanovdb.structures import Bytes, Coordinates, Keys
from hyprstream.vdb.nanovdb.topology import Topology
from hyprstream.vdb.nanovdb.view import GridView
from hyprstream.vdb.tensors import ARRAY_DTYPES, DType

_CHANNELS: dict[DType, str] = {
    "float32": "values",
    "float16": "values",
    "bfloat16": "values.bfloat16",  # no NanoVDB type: opaque bytes, known by their name
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseGrid:
    """A NanoVDB index grid and its values.

    Values may be written to at any time, and the grid has them. Which voxels are active never
    changes: `edit` makes another grid for that.

    Attributes:
        view: The grid.
        dtype: What the values are.
        channel: The background's value, then those of the voxels, (N + 1,); of bfloat16 the bits.
    """

    view: GridView
    dtype: DType
    channel: NDArray[Any]

    @classmethod
    def of_coordinates(
        cls,
        coordinates: Coordinates,
        values: NDArray[Any],
        dtype: DType = "float32",
        *,
        background: float = 0,
        name: str = "",
        blind: Mapping[str, bytes] | None = None,
    ) -> Self:
        """Build the grid of voxels anywhere, in any order; of equal ones the last counts.

        Args:
            coordinates: Where they are, (N, 3) int32.
            values: What they are, (N,) in the array dtype of `dtype`.
            dtype: What `values` holds.
            background: What all other voxels are; of bfloat16 the bits.
            name: Name of the grid, at most 255 bytes.
            blind: What else to keep behind the grid.

        Raises:
            InvalidAdapterError: The arrays do not fit each other, or a name is too long.
        """
        topo = topology.of_coordinates(coordinates)
        _check_values(values, dtype, len(coordinates))
        return cls._build(topo, values, dtype, background, name, blind)

    @classmethod
    def of_keys(
        cls,
        keys: Keys,
        values: NDArray[Any],
        dtype: DType = "float32",
        *,
        name: str = "",
        blind: Mapping[str, bytes] | None = None,
    ) -> Self:
        """Build the grid of voxels of the first root tile, by their keys in NanoVDB's order.

        The arguments and errors are those of `of_coordinates`, with 36-bit keys, (N,) uint64.
        """
        topo = topology.of_keys(keys)
        _check_values(values, dtype, len(keys))
        return cls._build(topo, values, dtype, 0, name, blind)

    @classmethod
    def _build(
        cls,
        topo: Topology,
        values: NDArray[Any],
        dtype: DType,
        background: float,
        name: str,
        blind: Mapping[str, bytes] | None,
    ) -> Self:
        channel = np.empty(topo.num_voxels + 1, values.dtype)
        channel[0] = background
        channel[1:] = values if topo.order is None else values[topo.order]
        channels = [
            Channel(name=_CHANNELS[dtype], data=channel, data_class=structures.CHANNEL_VALUES),
            *opaque_channels(blind or {}),
        ]
        return cls.of_view(writer.index_grid(topo, channels, name=name))

    @classmethod
    def of_view(cls, view: GridView, file: object = "the grid") -> Self:
        """Take a grid that was read: of an index grid as it is, of a float grid a copy.

        Raises:
            CorruptGridError: An index grid has no channel with a value for each voxel.
        """
        if view.kind == "float":
            return cls.of_coordinates(
                view.coordinates(), view.leaf_values(), background=view.background, name=view.name
            )
        for dtype, name in _CHANNELS.items():
            channel = view.channels.get(name)
            if channel is not None and dtype == "bfloat16" and channel.nbytes % 2 == 0:
                channel = channel.view(np.uint16)
            if channel is not None and channel.dtype == ARRAY_DTYPES[dtype]:
                if len(channel) != view.num_voxels + 1:
                    break
                return cls(view=view, dtype=dtype, channel=channel)
        raise CorruptGridError("no channel of it has one value for each voxel", file)

    @property
    def buffer(self) -> Bytes:
        """All of the grid, as `nanovdb.files` writes it."""
        return self.view.buffer

    @property
    def values(self) -> NDArray[Any]:
        """Values of the voxels, (N,) in index order; a view of the buffer."""
        return self.channel[1:]

    @property
    def num_voxels(self) -> int:
        """Number of active voxels."""
        return len(self.channel) - 1

    @property
    def blind(self) -> dict[str, bytes]:
        """What else is kept behind the grid."""
        return {
            name: data.tobytes()
            for name, data in self.view.channels.items()
            if name not in _CHANNELS.values()
        }

    def coordinates(self) -> Coordinates:
        """Return where the voxels are, (N, 3) in index order."""
        return self.view.coordinates()

    def lookup(self, coordinates: Coordinates) -> NDArray[Any]:
        """Return the value of each voxel, the background where none is active: (M,) of (M, 3)."""
        values: NDArray[Any] = self.channel[self.view.index(coordinates)]
        return values

    def is_active(self, coordinates: Coordinates) -> NDArray[np.bool_]:
        """Tell which voxels are active, (M,) of (M, 3)."""
        return self.view.index(coordinates) > 0

    def float_grid(self) -> Bytes:
        """Return the same as a `Float` grid, which older tools read, in a buffer of its own."""
        topo = topology.of_coordinates(self.coordinates())
        channel = widened(self.channel, self.dtype)
        values = channel[1:] if topo.order is None else channel[1:][topo.order]
        return writer.float_grid(topo, values, background=float(channel[0]), name=self.view.name)


def opaque_channels(blind: Mapping[str, bytes]) -> list[Channel]:
    """Return channels of bytes that mean nothing to other tools."""
    return [Channel(name=name, data=np.frombuffer(data, np.uint8)) for name, data in blind.items()]


def widened(values: NDArray[Any], dtype: DType) -> NDArray[np.float32]:
    """Return values as float32, of which all the dtypes are a subset."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def narrowed(values: NDArray[np.float32], dtype: DType) -> NDArray[Any]:
    """Return widened values as what they were."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(ARRAY_DTYPES[dtype])


def _check_values(values: NDArray[Any], dtype: DType, count: int) -> None:
    if values.shape != (count,) or values.dtype != ARRAY_DTYPES.get(dtype):
        raise InvalidAdapterError(
            f"{values.dtype} values {values.shape} are not {count} values of {dtype}"
        )
