import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hyprstream.errors import (
    CorruptWeightsError,
    HyprstreamError,
    ModelNotFoundError,
    UnsupportedFormatError,
)
from hyprstream.models.checkpoint import DTYPES, SafetensorsFile, open_safetensors
from hyprstream.models.checkpoint.strict_json import parse_object
from tests.models.checkpoint import forge


def write(folder: Path, data: bytes, name: str = "model.safetensors") -> Path:
    file = folder / name
    file.write_bytes(data)
    return file


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(
        ours.reshape(-1).view(torch.uint8), theirs.contiguous().reshape(-1).view(torch.uint8)
    )


def one(**changes: object) -> dict[str, object]:
    """The header of one float32 tensor of 4 bytes, with changes to its entry."""
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for kind, dtype in DTYPES.items():
        raw = torch.randint(0, 256, (24 * dtype.itemsize,), generator=generator, dtype=torch.uint8)
        raw = raw % 2 if dtype == torch.bool else raw
        tensors[f"{kind}.weight"] = raw.view(dtype).view(2, 3, 4)
    file = tmp_path / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = SafetensorsFile.open(file)
    with safe_open(file, "pt") as reference:
        assert set(checkpoint.names()) == set(reference.keys())
        for name in checkpoint.names():
            assert same_bits(checkpoint.tensor(name), reference.get_tensor(name)), name
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.size_bytes == file.stat().st_size


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1, 1, 1)])
def test_unusual_shapes_come_back(tmp_path, shape):
    tensor = torch.ones(shape)
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    assert same_bits(SafetensorsFile.open(tmp_path / "model.safetensors").tensor("a"), tensor)


def test_tensors_are_listed_in_the_order_of_the_header(tmp_path):
    header = {
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    checkpoint = SafetensorsFile.open(write(tmp_path, forge.safetensors(header, b"xy")))
    assert checkpoint.names() == ("b", "a")
    assert checkpoint.tensor("b").item() == ord("y")


def test_info_says_where_the_bytes_are(tmp_path):
    file = write(tmp_path, forge.sound_safetensors())
    info = SafetensorsFile.open(file).info("b")
    assert (info.shape, info.kind, info.size_bytes, info.file) == ((3,), "BF16", 6, file)
    stored = file.read_bytes()[info.offset : info.offset + info.size_bytes]
    assert stored == bytes(range(16, 22))


def test_tensors_stay_good_after_closing(tmp_path):
    with SafetensorsFile.open(write(tmp_path, forge.sound_safetensors())) as checkpoint:
        tensor = checkpoint.tensor("b")
    assert tensor.view(torch.uint8).tolist() == list(range(16, 22))


def test_missing_tensor_is_named(tmp_path):
    checkpoint = SafetensorsFile.open(write(tmp_path, forge.sound_safetensors()))
    with pytest.raises(CorruptWeightsError, match=r"has no tensor 'lm_head\.weight'"):
        checkpoint.tensor("lm_head.weight")


DAMAGED = {
    "shorter than a length": (b"\1\2\3", "it has 3 in all"),
    "length beyond the file": (forge.safetensors({}, length=3), "header of 3 bytes"),
    "length of 100 MB and more": (forge.safetensors({}, length=10**8 + 1), "100000001"),
    "length 0": (forge.safetensors(b""), "does not begin with"),
    "space first": (forge.safetensors(b" {}"), "does not begin with"),
    "not UTF-8": (forge.safetensors(b'{"\xff":1}'), "utf-8"),
    "not JSON": (forge.safetensors(b"{a}"), "JSON cannot be read"),
    "deep JSON": (forge.safetensors(b'{"a":' * 50_000), "recursion"),
    "two objects": (forge.safetensors(b"{}{}"), "Extra data"),
    "half a surrogate pair": (forge.safetensors(b'{"\\ud800":1}'), "surrogates"),
    "tensor twice": (forge.safetensors(b'{"a":1,"a":2}'), "appears twice"),
    "field twice": (forge.safetensors(b'{"a":{"dtype":"U8","dtype":"U8"}}'), "appears twice"),
    "too many values": (forge.safetensors(b"{" + b"[],[]," * 10**6), "more than 2000000 values"),
    "integer of 5000 digits": (
        forge.safetensors(b'{"a":' + b"9" * 5000 + b"}"),
        "JSON cannot be read",
    ),
    "minus zero": (forge.safetensors(b'{"a":-0}'), "-0 is not an integer"),
    "NaN": (forge.safetensors(b'{"a":NaN}'), "NaN is not a JSON number"),
    "131,073 tensors": (
        forge.safetensors({str(number): 0 for number in range(131_073)}),
        "lists 131073 tensors",
    ),
    "metadata is a list": (forge.safetensors({"__metadata__": []}), "__metadata__"),
    "metadata is a number": (forge.safetensors({"__metadata__": {"k": 1}}), "'k' is not a string"),
    "entry is a list": (forge.safetensors({"a": ["F32", [1], [0, 4]]}, bytes(4)), "by an object"),
    "no dtype": (forge.safetensors({"a": {"shape": [], "data_offsets": [0, 4]}}), "dtype"),
    "unknown dtype": (forge.safetensors(one(dtype="Q9"), bytes(4)), "'Q9'"),
    "dtype is a list": (forge.safetensors(one(dtype=["F32"]), bytes(4)), "dtype"),
    "shape is a number": (forge.safetensors(one(shape=1), bytes(4)), "is not a list"),
    "shape with true": (forge.safetensors(one(shape=[True]), bytes(4)), "holds 'True'"),
    "shape with a float": (forge.safetensors(one(shape=[1.0]), bytes(4)), r"holds '1\.0'"),
    "shape with -1": (forge.safetensors(one(shape=[-1]), bytes(4)), "holds '-1'"),
    "shape with 2**64": (forge.safetensors(one(shape=[2**64, 0]), b""), "18446744073709551616"),
    "product wraps to 1": (forge.safetensors(one(shape=[2**32 + 1, 2**32 - 1]), bytes(4)), "impos"),
    "empty but torch cannot hold it": (
        forge.safetensors(one(shape=[2**62, 2**62, 0], data_offsets=[0, 0])),
        "impossible shape",
    ),
    "100 dimensions": (forge.safetensors(one(shape=[1] * 100), bytes(4)), "100 dimensions"),
    "three offsets": (forge.safetensors(one(data_offsets=[0, 4, 8]), bytes(4)), "are 3 numbers"),
    "reversed offsets": (forge.safetensors(one(data_offsets=[4, 0]), bytes(4)), "from 4 to 0"),
    "range too small": (forge.safetensors(one(shape=[2]), bytes(4)), "needs 8 bytes"),
    "hole before the data": (forge.safetensors(one(data_offsets=[4, 8]), bytes(8)), "begins at"),
    "data cut": (forge.safetensors(one(), bytes(3)), "the file at"),
    "bytes after the data": (forge.safetensors(one(), bytes(5)), "the file at"),
    "overlap": (forge.safetensors(one() | {"b": one()["a"]}, bytes(4)), "'b' begins at"),
}


@pytest.mark.parametrize(("data", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_refused_and_says_why(tmp_path, data, problem):
    file = write(tmp_path, data)
    with pytest.raises(CorruptWeightsError, match=problem) as caught:
        SafetensorsFile.open(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"])
def test_dtype_that_torch_cannot_hold_is_refused_by_name(tmp_path, kind):
    file = write(tmp_path, forge.safetensors(one(dtype=kind), bytes(4)))
    with pytest.raises(UnsupportedFormatError, match=f"'a' of .* is stored as {kind}"):
        SafetensorsFile.open(file)


def test_json_that_is_no_object_is_damaged(tmp_path):
    with pytest.raises(CorruptWeightsError, match="not an object"):
        parse_object(tmp_path / "x", b"[]")


def test_header_may_be_padded_with_spaces(tmp_path):
    raw = json.dumps(one()).encode() + b" " * 100_000
    checkpoint = SafetensorsFile.open(write(tmp_path, forge.safetensors(raw, bytes(4))))
    assert checkpoint.tensor("a").item() == 0


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {f"layers.{i}.weight": torch.full((2, 3), float(i)) for i in range(4)}
    names = list(tensors)
    shards = {"model-1-of-2.safetensors": names[:2], "model-2-of-2.safetensors": names[2:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    write_index(folder, {name: shard for shard, held in shards.items() for name in held})
    return tensors


def write_index(folder: Path, weight_map: object) -> Path:
    index = {"metadata": {"total_size": 96.0}, "weight_map": weight_map}
    return write(folder, json.dumps(index).encode(), "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_shards_are_one_checkpoint(tmp_path, name):
    tensors = sharded(tmp_path)
    checkpoint = open_safetensors(tmp_path / name)
    assert checkpoint.names() == tuple(tensors)
    for tensor_name, tensor in tensors.items():
        assert same_bits(checkpoint.tensor(tensor_name), tensor)
        checkpoint.release(tensor_name)
    checkpoint.release_all()
    shards = tmp_path.glob("*.safetensors")
    assert checkpoint.size_bytes == sum(file.stat().st_size for file in shards)


def test_whole_file_goes_before_an_index(tmp_path):
    sharded(tmp_path)
    write(tmp_path, forge.sound_safetensors())
    assert open_safetensors(tmp_path).names() == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".hidden",
        "",
        "C:\\model",
        "nul\0byte",
        "x" * 300,
        "new\nline",
        "line\n",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_shard_outside_the_folder_is_refused(tmp_path, shard):
    index = write_index(tmp_path, {"a": shard})
    with pytest.raises(CorruptWeightsError, match="not a plain file name"):
        open_safetensors(index)


def test_missing_shard_is_named(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"names a shard .*model-2-of-2\.safetensors"):
        open_safetensors(tmp_path)


def test_tensor_that_its_shard_does_not_hold_is_named(tmp_path):
    sharded(tmp_path)
    write_index(tmp_path, {"layers.0.weight": "model-2-of-2.safetensors"})
    with pytest.raises(CorruptWeightsError, match=r"does not hold the tensor 'layers\.0\.weight'"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("shard_is", ["an index", "damaged"])
def test_shard_that_is_no_safetensors_file_is_refused(tmp_path, shard_is):
    index = write_index(tmp_path, {"a": "shard.safetensors"})
    write(tmp_path, index.read_bytes() if shard_is == "an index" else b"junk", "shard.safetensors")
    with pytest.raises(HyprstreamError, match=r"shard\.safetensors is"):
        open_safetensors(index)


def test_index_over_100_mb_is_refused_unread(tmp_path):
    index = write_index(tmp_path, {})
    os.truncate(index, 100_000_001)
    with pytest.raises(CorruptWeightsError, match="100000001 bytes is too large"):
        open_safetensors(index)


@pytest.mark.parametrize("content", ["{}", '{"error": "Repository not found"}'])
def test_json_that_is_no_index_is_refused(tmp_path, content):
    with pytest.raises(UnsupportedFormatError, match="without a weight_map"):
        open_safetensors(write(tmp_path, content.encode()))


def test_folder_without_the_usual_names_is_not_found(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"neither model\.safetensors nor"):
        open_safetensors(tmp_path)
