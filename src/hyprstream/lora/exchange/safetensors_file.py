"""Writes safetensors files, tensor by tensor."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hyprstream.models.checkpoint import DTYPES

_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor that is yet to be written.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        make: Gives it; called once, when its turn comes, so that few are in memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> "Part":
        """Take a tensor that exists."""
        return cls(shape=tuple(tensor.shape), dtype=tensor.dtype, make=lambda: tensor)

    @property
    def size_bytes(self) -> int:
        """Bytes in a file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_safetensors(
    file: Path, parts: Mapping[str, Part], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file.

    Larger elements come first, as in the reference implementation, so that all are aligned.

    Args:
        file: Where.
        parts: Tensors by name.
        metadata: Notes of the header.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    ordered = sorted(parts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    offset = 0
    for name, part in ordered:
        header[name] = {
            "dtype": _KINDS[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [offset, offset + part.size_bytes],
        }
        offset += part.size_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, part in ordered:
            stream.write(raw_bytes(part.make(), part))


def raw_bytes(tensor: Tensor, part: Part) -> memoryview:
    """Return a tensor's bytes, little endian as all machines are that torch runs on."""
    assert tuple(tensor.shape) == part.shape
    assert tensor.dtype == part.dtype
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data
