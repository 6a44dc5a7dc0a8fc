"""One file per code in which an adapter is stored; the file's name is the name of the code.

A module here has the three names of `Codec`. docs/how-to/add-a-codec.md says how to add one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from hyprstream import lookup
from hyprstream.errors import UnsupportedCodecError
from hyprstream.vdb.tensors import SparseTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What coding an adapter came to.

    Attributes:
        num_values: Elements of its tensors, active or not.
        size_bytes: Size of the stream.
        relative_error: Error of what the adapter adds, as a share of it; 0 for exact codes.
        is_update: Whether the stream needs that of its parent.
    """

    num_values: int
    size_bytes: int
    relative_error: float = 0.0
    is_update: bool = False

    @property
    def ratio_float32(self) -> float:
        """Size of all elements in 4 bytes each, by the size of the stream."""
        return 4 * self.num_values / max(1, self.size_bytes)

    @property
    def ratio_float16(self) -> float:
        """Size of all elements in 2 bytes each, by the size of the stream."""
        return self.ratio_float32 / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A stream, and what it came to."""

    data: bytes
    report: Report


@runtime_checkable
class Codec(Protocol):
    """What a module of this package offers."""

    LOSSLESS: bool
    """Whether what is decoded has the bits of what was encoded; else it is float32."""

    def encode(self, tensors: Mapping[str, SparseTensor]) -> Encoded:
        """Code an adapter.

        Raises:
            InvalidAdapterError: Its values cannot be coded.
        """
        ...

    def decode(self, data: bytes) -> dict[str, SparseTensor]:
        """Return the adapter that a stream holds; the bytes need not be sound.

        Raises:
            UnsupportedError: They are of a version of the code that is not known here.
            CorruptGridError: They are no stream of the code, or damaged.
        """
        ...


def load(name: str) -> Codec:
    """Return the code of a name, which may come from an untrusted file.

    Raises:
        UnsupportedCodecError: There is none of that name.
    """
    module = lookup.load(__name__, name, kind="code", error=UnsupportedCodecError)
    return cast("Codec", module)


def measure(tensors: Mapping[str, SparseTensor], data: bytes) -> Report:
    """Report on an exact code."""
    return Report(num_values=sum(t.size for t in tensors.values()), size_bytes=len(data))
