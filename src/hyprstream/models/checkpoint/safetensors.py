"""SafeTensors: 8 bytes of length, a JSON header, then the tensors without gaps.

The header obeys the same rules as in the reference implementation (the Rust crate), and two
more: it begins with `{`, as the format's text demands, and no key appears twice. Large models come
in shards: an index names the file of each tensor.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from hyprstream.errors import CorruptWeightsError, ModelNotFoundError, UnsupportedFormatError
from hyprstream.models.checkpoint.magic import JSON, MAX_HEADER_BYTES, SAFETENSORS, expect, identify
from hyprstream.models.checkpoint.mapping import MappedFile, is_folder
from hyprstream.models.checkpoint.strict_json import parse_object
from hyprstream.models.checkpoint.tensors import (
    DTYPES,
    MAX_TENSORS,
    Checkpoint,
    MappedTensors,
    TensorInfo,
    num_elements,
    shown,
)

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

_LENGTH_BYTES = 8
# A file in the index's own folder: no separator, no drive, no leading dot.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +=@-]{0,254}")
# In the format, but torch has no dtype for them or packs several into one element.
_OTHER_DTYPES = frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"})


class SafetensorsFile(MappedTensors):
    """One safetensors file.

    Attributes:
        metadata: The header's own notes, such as `{"format": "pt"}`.
    """

    def __init__(
        self, tensors: Mapping[str, TensorInfo], mapped: MappedFile, metadata: Mapping[str, str]
    ) -> None:
        super().__init__(tensors, [mapped])
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))

    @classmethod
    def open(cls, file: Path) -> "SafetensorsFile":
        """Map a file and check its header.

        Raises:
            ModelNotFoundError: There is no such file.
            CorruptWeightsError: The header breaks a rule of the format.
            UnsupportedFormatError: It is another kind of file, or a tensor has a dtype that
                torch has not.
        """
        mapped = MappedFile.open(file)
        expect(mapped, SAFETENSORS)
        header, data_start = _header(mapped)
        metadata = _metadata(file, header.pop("__metadata__", {}))
        return cls(_tensors(mapped, header, data_start), mapped, metadata)


def open_safetensors(path: Path) -> Checkpoint:
    """Open a file, an index of shards, or a folder that has one of them under its usual name.

    Raises:
        ModelNotFoundError: Neither is there.
        CorruptWeightsError: A header or the index breaks a rule, or a shard is missing.
        UnsupportedFormatError: It is another kind of file.
    """
    if is_folder(path):
        candidates = [path / SINGLE_NAME, path / INDEX_NAME]
        path = next((file for file in candidates if file.exists()), path)
        if path not in candidates:
            raise ModelNotFoundError(
                f"{path} holds neither {SINGLE_NAME} nor {INDEX_NAME}",
                hint="Name the folder of a model, or the file itself.",
            )
    if identify(MappedFile.open(path)) == JSON:
        return _open_shards(path)
    return SafetensorsFile.open(path)


def _header(mapped: MappedFile) -> tuple[dict[str, object], int]:
    length = int.from_bytes(mapped.data[:_LENGTH_BYTES], "little")
    data_start = _LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or data_start > mapped.size_bytes:
        raise CorruptWeightsError(
            mapped.file,
            f"as a safetensors file it would have a header of {length} bytes, it has "
            f"{mapped.size_bytes} in all",
        )
    if not length or mapped.data[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise CorruptWeightsError(mapped.file, "its header does not begin with '{'")
    with memoryview(mapped.data) as whole, whole[_LENGTH_BYTES:data_start] as part:
        return parse_object(mapped.file, part), data_start


def _metadata(file: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptWeightsError(file, "its __metadata__ is not an object")
    for key, text in value.items():
        if not isinstance(text, str):
            raise CorruptWeightsError(file, f"__metadata__ {shown(key)} is not a string")
    return value


def _tensors(
    mapped: MappedFile, header: Mapping[str, object], data_start: int
) -> dict[str, TensorInfo]:
    if len(header) > MAX_TENSORS:
        raise CorruptWeightsError(
            mapped.file, f"it lists {len(header)} tensors, {MAX_TENSORS} are admitted"
        )
    tensors = {
        name: _tensor_info(mapped.file, name, entry, data_start) for name, entry in header.items()
    }
    _check_coverage(mapped, tensors, data_start)
    return tensors


def _tensor_info(file: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    where = f"tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise CorruptWeightsError(file, f"{where} is not described by an object")
    kind = _kind(file, where, entry.get("dtype"))
    shape = _sizes(file, f"the shape of {where}", entry.get("shape"))
    offsets = _sizes(file, f"data_offsets of {where}", entry.get("data_offsets"))
    if len(offsets) != 2:
        raise CorruptWeightsError(file, f"data_offsets of {where} are {len(offsets)} numbers")
    begin, end = offsets
    needed = num_elements(file, name, shape) * DTYPES[kind].itemsize
    if end - begin != needed:
        raise CorruptWeightsError(
            file, f"{where} needs {needed} bytes and has those from {begin} to {end}"
        )
    return TensorInfo(
        name=name,
        shape=shape,
        kind=kind,
        offset=data_start + begin,
        size_bytes=needed,
        file=file,
    )


def _kind(file: Path, where: str, value: object) -> str:
    if not isinstance(value, str):
        raise CorruptWeightsError(file, f"{where} has no dtype")
    if value in _OTHER_DTYPES:
        raise UnsupportedFormatError(
            f"{where} of {file} is stored as {value}, which is not supported",
            hint="Fetch the model in F32, F16 or BF16.",
        )
    if value not in DTYPES:
        raise CorruptWeightsError(file, f"{where} has the unknown dtype {shown(value)}")
    return value


def _sizes(file: Path, what: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise CorruptWeightsError(file, f"{what} is not a list")
    for item in value:
        # type(), not isinstance(): JSON's true is an int to Python.
        if type(item) is not int or not 0 <= item < 1 << 64:
            raise CorruptWeightsError(file, f"{what} holds {shown(str(item))}")
    return tuple(value)


def _check_coverage(mapped: MappedFile, tensors: Mapping[str, TensorInfo], data_start: int) -> None:
    """Demand that the tensors fill the rest of the file, without holes and without overlap."""
    reached = data_start
    ordered = sorted(tensors.values(), key=lambda info: (info.offset, info.size_bytes))
    for info in ordered:
        if info.offset != reached:
            raise CorruptWeightsError(
                mapped.file,
                f"tensor {shown(info.name)} begins at byte {info.offset}, the one before it "
                f"ends at {reached}",
            )
        reached += info.size_bytes
    if reached != mapped.size_bytes:
        raise CorruptWeightsError(
            mapped.file, f"its tensors end at byte {reached}, the file at {mapped.size_bytes}"
        )


def _open_shards(index: Path) -> Checkpoint:
    mapped = MappedFile.open(index)
    if mapped.size_bytes > MAX_HEADER_BYTES:
        raise CorruptWeightsError(index, f"an index of {mapped.size_bytes} bytes is too large")
    weight_map = parse_object(index, mapped.data[:]).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UnsupportedFormatError(
            f"{index} is {JSON} without a weight_map, not an index of shards",
            hint=f"Name the model's folder, its {SINGLE_NAME} or its {INDEX_NAME}.",
        )
    shards: dict[str, SafetensorsFile] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            raise CorruptWeightsError(
                index, f"tensor {shown(name)} is in {shown(str(shard))}, not a plain file name"
            )
        if shard not in shards:
            shards[shard] = _open_shard(index, shard)
        if name not in shards[shard]:
            raise CorruptWeightsError(index, f"{shard} does not hold the tensor {shown(name)}")
        tensors[name] = shards[shard].info(name)
    return MappedTensors(tensors, [file for shard in shards.values() for file in shard.files])


def _open_shard(index: Path, shard: str) -> SafetensorsFile:
    try:
        return SafetensorsFile.open(index.parent / shard)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{index.name} names a shard that cannot be read: {error}",
            hint="Fetch all shards of the model into one folder.",
        ) from error
