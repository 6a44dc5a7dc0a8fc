"""What every checkpoint offers: named tensors in mapped files.

How a file is laid out is the business of `safetensors.py` and `gguf.py`; both turn their
header into `TensorInfo` and leave the rest to `MappedTensors`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from hyprstream.errors import CorruptWeightsError, UnsupportedFormatError
from hyprstream.models.checkpoint.mapping import MappedFile

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "C64": torch.complex64,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""Kind of a plain tensor -> its torch dtype. Kinds that are not here are block types."""

MAX_TENSORS = 1 << 17
"""Most tensors in one file; ten times what the largest published shards hold."""

_MAX_DIMS = 64  # torch's own limit for most operations
_MAX_SHOWN = 80

# Not typing.Self: the tests check annotations method by method, where Self has no meaning.
_Tensors = TypeVar("_Tensors", bound="MappedTensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies and how it is to be read.

    Attributes:
        name: What the file calls it.
        shape: In torch's order, outermost dimension first.
        kind: A key of `DTYPES`, or of `BLOCK_TYPES` for GGUF's quantised blocks.
        offset: First byte, counted from the start of the file.
        size_bytes: Bytes that it takes in the file.
        file: The file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    size_bytes: int
    file: Path


@runtime_checkable
class Checkpoint(Protocol):
    """Named tensors on disk. Close it when no more tensors are wanted of it."""

    @property
    def size_bytes(self) -> int:
        """Give the length of all its files together."""
        ...

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """Give the files that are mapped."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> tuple[str, ...]:
        """List the tensors in the order of the file."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Describe one tensor.

        Raises:
            CorruptWeightsError: The checkpoint has no tensor of that name.
        """
        ...

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Give a tensor in its stored dtype, sharing the mapped memory.

        Raises:
            UnsupportedFormatError: It is stored in blocks, for which torch has no dtype.
        """
        ...

    def blocks(self, name: str) -> UInt8[Tensor, "... row_bytes"]:
        """Give a tensor's stored bytes, one row per row of the tensor, sharing memory."""
        ...

    def release(self, name: str) -> None:
        """Let go of the memory behind a tensor that has been copied elsewhere."""
        ...

    def release_all(self) -> None:
        """Let go of all memory behind the files; whoever reads on brings it back."""
        ...

    def close(self) -> None:
        """Forget the files. Tensors that were given out stay good."""
        ...

    def __enter__(self) -> "Checkpoint": ...

    def __exit__(self, *exc_info: object) -> None: ...


class MappedTensors:
    """The tensors of one or more mapped files.

    Invariant: every `TensorInfo` lies within its file and its size follows from its shape and
    kind; the readers establish it, `test_fuzz.py` checks it.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], files: Sequence[MappedFile]) -> None:
        self._tensors = dict(tensors)
        self._files = {mapped.file: mapped for mapped in files}
        self._size_bytes = sum(mapped.size_bytes for mapped in files)

    @property
    def size_bytes(self) -> int:
        """Give the length of all files together."""
        return self._size_bytes

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """Give the files that are mapped."""
        return tuple(self._files.values())

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> tuple[str, ...]:
        """List the tensors in the order of the file."""
        return tuple(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Describe one tensor.

        Raises:
            CorruptWeightsError: There is no tensor of that name.
        """
        info = self._tensors.get(name)
        if info is None:
            files = ", ".join(str(file) for file in self._files)
            raise CorruptWeightsError(files, f"it has no tensor {shown(name)}")
        return info

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Give a tensor in its stored dtype, sharing the mapped memory.

        Raises:
            CorruptWeightsError: There is no tensor of that name.
            UnsupportedFormatError: It is stored in blocks, for which torch has no dtype.
        """
        info = self.info(name)
        dtype = DTYPES.get(info.kind)
        if dtype is None:
            raise UnsupportedFormatError(
                f"tensor {shown(name)} of {info.file} is stored as {info.kind}, plain numbers "
                "were expected",
                hint="Convert the model with this tensor in F32, F16 or BF16.",
            )
        return self._file(info).tensor(info.offset, info.shape, dtype)

    def blocks(self, name: str) -> UInt8[Tensor, "... row_bytes"]:
        """Give a tensor's stored bytes, one row per row of the tensor, sharing memory.

        Raises:
            CorruptWeightsError: There is no tensor of that name.
        """
        info = self.info(name)
        rows = info.shape[:-1]
        row_bytes = info.size_bytes // max(math.prod(rows), 1)
        return self._file(info).rows(info.offset, (*rows, row_bytes))

    def release(self, name: str) -> None:
        """Let go of the memory behind a tensor that has been copied elsewhere."""
        info = self.info(name)
        self._file(info).release(info.offset, info.size_bytes)

    def release_all(self) -> None:
        """Let go of all memory behind the files; whoever reads on brings it back."""
        for mapped in self._files.values():
            mapped.release_all()

    def close(self) -> None:
        """Forget the files. Tensors that were given out stay good."""
        self._files.clear()

    def __enter__(self: _Tensors) -> _Tensors:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _file(self, info: TensorInfo) -> MappedFile:
        assert info.file in self._files, "the checkpoint is closed"
        return self._files[info.file]


def num_elements(file: Path, name: str, shape: Sequence[int]) -> int:
    """Count the elements of a tensor, in unbounded integers.

    Raises:
        CorruptWeightsError: torch could not hold a tensor of this shape: too many
            dimensions, or strides beyond 63 bits even where a dimension is 0.
    """
    if len(shape) > _MAX_DIMS:
        raise CorruptWeightsError(file, f"tensor {shown(name)} has {len(shape)} dimensions")
    # 16 is the largest element there is; sizes in bytes must fit as well.
    if math.prod(dim for dim in shape if dim) * 16 >= 1 << 63:
        raise CorruptWeightsError(file, f"tensor {shown(name)} has the impossible shape {shape}")
    return math.prod(shape)


def shown(name: str) -> str:
    """Quote a name from a file for a message of one line."""
    return repr(name if len(name) <= _MAX_SHOWN else name[: _MAX_SHOWN - 3] + "...")
