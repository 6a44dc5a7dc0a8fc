"""Channels: arrays that lie behind the tree of a grid, "blind data" in the words of NanoVDB."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.nanovdb import structures as s

_DATA_TYPES = {"<f4": s.TYPE_FLOAT, "<f2": s.TYPE_HALF}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channel:
    """An array that lies behind the tree.

    Attributes:
        name: At most 255 bytes.
        data: Float32 and float16 are marked as such; anything else is opaque bytes.
        data_class: `CHANNEL_VALUES` if an index grid numbers its elements.
    """

    name: str
    data: NDArray[Any]
    data_class: int = s.CHANNEL_BLIND


def encoded_name(name: str) -> bytes:
    """Return a name as the format holds it.

    Raises:
        InvalidAdapterError: It is too long, holds NUL, or is no text.
    """
    encoded = name.encode(errors="surrogatepass")
    sound = len(encoded) <= s.MAX_NAME_BYTES and b"\0" not in encoded
    if not sound or any("\ud800" <= character <= "\udfff" for character in name):
        raise InvalidAdapterError(
            f"the name {name[:40]!r} is not one that a grid may have",
            hint=f"Use at most {s.MAX_NAME_BYTES} bytes of text without NUL.",
        )
    return encoded


def size_of_channels(channels: Sequence[Channel]) -> int:
    """Return how many bytes channels and their descriptions take."""
    data = sum(s.padded(channel.data.nbytes) for channel in channels)
    return len(channels) * s.BLIND_METADATA.itemsize + data


def write_channels(
    buffer: s.Bytes, start: int, channels: Sequence[Channel]
) -> dict[str, NDArray[Any]]:
    """Write channels from `start` on; return where each is now."""
    at = start + len(channels) * s.BLIND_METADATA.itemsize
    metadata = buffer[start:at].view(s.BLIND_METADATA)
    written: dict[str, NDArray[Any]] = {}
    for number, channel in enumerate(channels):
        data_type = _DATA_TYPES.get(channel.data.dtype.newbyteorder("<").str, s.TYPE_UNKNOWN)
        data = np.ascontiguousarray(channel.data).reshape(-1)
        if not data_type:
            data = data.view(np.uint8)
        entry = metadata[number]
        entry["data_offset"] = at - start - number * s.BLIND_METADATA.itemsize
        entry["value_count"], entry["value_size"] = data.size, data.itemsize
        entry["data_class"], entry["data_type"] = channel.data_class, data_type
        entry["name"] = encoded_name(channel.name)
        written[channel.name] = buffer[at : at + data.nbytes].view(data.dtype)
        written[channel.name][:] = data
        at += s.padded(data.nbytes)
    return written
