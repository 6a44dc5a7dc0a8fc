"""GGUF versions 2 and 3, little endian: typed metadata, a table of tensors, aligned data.

Layout: magic, version, number of tensors, number of metadata entries; the entries; the
table; padding to `general.alignment`; the data. Shapes are stored innermost first and turned
round here. Specification: `docs/gguf.md` in the ggml repository; where it leaves a choice, this
reader does as llama.cpp does.

Quantised tensors are given out as they are, in blocks; `models/quant` computes with them.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hyprstream.errors import CorruptWeightsError, UnsupportedFormatError
from hyprstream.models.checkpoint.cursor import Cursor, MetadataValue
from hyprstream.models.checkpoint.magic import GGUF, expect
from hyprstream.models.checkpoint.mapping import MappedFile
from hyprstream.models.checkpoint.tensors import (
    DTYPES,
    MAX_TENSORS,
    MappedTensors,
    TensorInfo,
    num_elements,
    shown,
)

BLOCK_TYPES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "Q4_0": (32, 18),
        "Q4_1": (32, 20),
        "Q5_0": (32, 22),
        "Q5_1": (32, 24),
        "Q8_0": (32, 34),
        "Q2_K": (256, 84),
        "Q3_K": (256, 110),
        "Q4_K": (256, 144),
        "Q5_K": (256, 176),
        "Q6_K": (256, 210),
        "IQ4_NL": (32, 18),
        "IQ4_XS": (256, 136),
    }
)
"""Block type -> (numbers in a block, bytes of a block), for those that are supported."""

# Every type that ggml has ever numbered, so that a refusal can name it; the number is the index.
# fmt: off
_TYPE_NAMES = (
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M",
    "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0",
    "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4", "NVFP4", "Q1_0",
)
# fmt: on

_MAGIC_BYTES = 4
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_METADATA = 1 << 16  # published files hold some hundred entries at most
# Smallest entries: a key of 1 byte with a 1-byte value; a name of 1 byte without dimensions.
_MIN_METADATA_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8


class GgufFile(MappedTensors):
    """One GGUF file.

    Attributes:
        metadata: Key -> value in plain Python, arrays as lists.
        version: Version of the format, 2 or 3.
        alignment: Every tensor begins at a multiple of so many bytes.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        mapped: MappedFile,
        metadata: Mapping[str, MetadataValue],
        *,
        version: int,
        alignment: int,
    ) -> None:
        super().__init__(tensors, [mapped])
        self.metadata: Mapping[str, MetadataValue] = MappingProxyType(dict(metadata))
        self.version = version
        self.alignment = alignment

    @classmethod
    def open(cls, file: Path) -> "GgufFile":
        """Map a file and check its header and table.

        Raises:
            ModelNotFoundError: There is no such file.
            CorruptWeightsError: The file breaks a rule of the format.
            UnsupportedFormatError: It is another kind of file, another version, one part of
                several, or holds a tensor of a type that is not supported.
        """
        mapped = MappedFile.open(file)
        expect(mapped, GGUF)
        if mapped.data[:_MAGIC_BYTES] != b"GGUF":
            raise CorruptWeightsError(file, "it does not begin with GGUF")
        cursor = Cursor(mapped, _MAGIC_BYTES)
        version = _version(file, cursor)
        cursor.place = "the number of tensors"
        num_tensors = cursor.count(min_bytes=_MIN_TENSOR_BYTES, most=MAX_TENSORS)
        cursor.place = "the number of metadata entries"
        num_metadata = cursor.count(min_bytes=_MIN_METADATA_BYTES, most=_MAX_METADATA)
        metadata = _metadata(cursor, num_metadata)
        _refuse_split(file, metadata)
        alignment = _alignment(file, metadata)
        tensors = _tensors(mapped, cursor, num_tensors, alignment)
        mapped.release(0, cursor.offset)  # the header is in Python objects now
        return cls(tensors, mapped, metadata, version=version, alignment=alignment)


def _version(file: Path, cursor: Cursor) -> int:
    version = cursor.u32()
    if version in (2, 3):
        return version
    if version == 0:
        raise CorruptWeightsError(file, "it claims version 0 of GGUF")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    what = f"of version {version}" if swapped > 3 else "in big endian"
    raise UnsupportedFormatError(
        f"{file} is a GGUF file {what}; versions 2 and 3 in little endian are supported",
        hint="Fetch or make a newer conversion of the model.",
    )


def _metadata(cursor: Cursor, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for index in range(count):
        cursor.place = f"metadata key {index}"
        key = cursor.text()
        if not key or key in metadata:
            raise cursor.damaged(f"is {shown(key)}, which is empty or there already")
        cursor.place = f"metadata {shown(key)}"
        metadata[key] = cursor.value(cursor.u32())
    return metadata


def _refuse_split(file: Path, metadata: Mapping[str, MetadataValue]) -> None:
    parts = metadata.get("split.count", 0)
    if not isinstance(parts, int):
        raise CorruptWeightsError(file, f"split.count is {shown(str(parts))}")
    if parts > 1:
        raise UnsupportedFormatError(
            f"{file} is one of {parts} parts of a split GGUF file",
            hint="Join them with llama.cpp's `llama-gguf-split --merge` and name the result.",
        )


def _alignment(file: Path, metadata: Mapping[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CorruptWeightsError(
            file, f"general.alignment is {shown(str(alignment))}, not a power of two"
        )
    return alignment


def _tensors(
    mapped: MappedFile, cursor: Cursor, count: int, alignment: int
) -> dict[str, TensorInfo]:
    entries: dict[str, TensorInfo] = {}
    for index in range(count):
        cursor.place = f"tensor {index}"
        info = _tensor_info(mapped.file, cursor)
        if info.name in entries:
            raise cursor.damaged(f"is named {shown(info.name)} like another one")
        if info.offset % alignment:
            raise cursor.damaged(
                f"{shown(info.name)} has offset {info.offset}, not a multiple of {alignment}"
            )
        entries[info.name] = info
    # Offsets in the table count from the end of the table, padded.
    data_start = -(-cursor.offset // alignment) * alignment
    tensors = {
        name: replace(info, offset=data_start + info.offset) for name, info in entries.items()
    }
    _check_ranges(mapped, tensors)
    return tensors


def _tensor_info(file: Path, cursor: Cursor) -> TensorInfo:
    """Read one entry of the table; its offset still counts from the start of the data."""
    name = cursor.text()
    if not name:
        raise cursor.damaged("has no name")
    num_dims = cursor.u32()
    if num_dims > _MAX_DIMS:
        raise cursor.damaged(f"{shown(name)} has {num_dims} dimensions")
    shape = tuple(reversed([cursor.u64() for _ in range(num_dims)]))
    kind = _kind(file, cursor, name)
    return TensorInfo(
        name=name,
        shape=shape,
        kind=kind,
        offset=cursor.u64(),
        size_bytes=_size_bytes(file, name, shape, kind),
        file=file,
    )


def _kind(file: Path, cursor: Cursor, name: str) -> str:
    number = cursor.u32()
    if number >= len(_TYPE_NAMES):
        raise cursor.damaged(f"{shown(name)} has the unknown type {number}")
    kind = _TYPE_NAMES[number]
    if kind not in DTYPES and kind not in BLOCK_TYPES:
        raise UnsupportedFormatError(
            f"tensor {shown(name)} of {file} is stored as {kind}, which is not supported",
            hint=f"Supported: F64, F32, F16, BF16, integers, {', '.join(BLOCK_TYPES)}.",
        )
    return kind


def _size_bytes(file: Path, name: str, shape: tuple[int, ...], kind: str) -> int:
    elements = num_elements(file, name, shape)
    if kind in DTYPES:
        return elements * DTYPES[kind].itemsize
    block_len, block_bytes = BLOCK_TYPES[kind]
    row_len = shape[-1] if shape else 1
    if row_len % block_len:
        raise CorruptWeightsError(
            file,
            f"tensor {shown(name)} has rows of {row_len}, {kind} comes in blocks of {block_len}",
        )
    return elements // block_len * block_bytes


def _check_ranges(mapped: MappedFile, tensors: Mapping[str, TensorInfo]) -> None:
    """Demand that every tensor lies within the file and none within another."""
    reached = 0
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.size_bytes)):
        end = info.offset + info.size_bytes
        if end > mapped.size_bytes:
            raise CorruptWeightsError(
                mapped.file,
                f"tensor {shown(info.name)} ends at byte {end}, the file at {mapped.size_bytes}",
            )
        if info.size_bytes and info.offset < reached:
            raise CorruptWeightsError(
                mapped.file, f"tensor {shown(info.name)} overlaps the one before it"
            )
        reached = max(reached, end)
