import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from hyprstream.errors import CorruptWeightsError, UnsupportedFormatError
from hyprstream.models.checkpoint import BLOCK_TYPES, GgufFile
from tests.models.checkpoint import forge
from tests.models.checkpoint.forge import ARRAY, BOOL, STRING, U8, U16, U32, U64

PLAIN = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
}


def write(folder: Path, data: bytes) -> Path:
    file = folder / "model.gguf"
    file.write_bytes(data)
    return file


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_block_sizes_are_those_of_ggml():
    for kind, sizes in BLOCK_TYPES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == sizes


def test_metadata_of_every_type_comes_back(tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    values = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float32": 0.1,
        "float64": 0.1,
        "bool": True,
        "string": "gr\u00fc\u00df \U0001f600",
    }
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    arrays = {
        "x.tokens": ["<s>", "", "\u2581the", "\U0001f600"] * 100,
        "x.ints": [1, -2, 3],
        "x.floats": [0.5, -1.25],
        "x.bools": [True, False, True],
        "x.nested": [[1, 2], [3]],
    }
    for key, items in arrays.items():
        writer.add_array(key, items)
    finish(writer)
    metadata = GgufFile.open(file).metadata
    for kind, value in values.items():
        got = metadata[f"x.{kind}"]
        assert type(got) is type(value)
        assert got == (pytest.approx(value, rel=1e-7) if kind == "float32" else value)
    for key, items in arrays.items():
        assert metadata[key] == items
    assert metadata["general.architecture"] == "llama"


def test_plain_tensors_come_back_bit_for_bit(tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    rng = np.random.default_rng(0)
    arrays = {}
    for kind, dtype in PLAIN.items():
        raw = rng.integers(0, 256, 3 * 5 * 2 * np.dtype(dtype).itemsize, dtype=np.uint8)
        arrays[kind] = raw.view(dtype).reshape(3, 5, 2)
        writer.add_tensor(kind, arrays[kind])
    bf16 = quantize(rng.standard_normal((4, 6), np.float32), gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("BF16", bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
    finish(writer)
    checkpoint = GgufFile.open(file)
    for kind, array in arrays.items():
        tensor = checkpoint.tensor(kind)
        assert checkpoint.info(kind).kind == kind
        assert tensor.shape == array.shape
        assert tensor.numpy().tobytes() == array.tobytes()
    assert checkpoint.tensor("BF16").dtype == torch.bfloat16
    assert checkpoint.tensor("BF16").shape == (4, 6)
    assert checkpoint.blocks("BF16").numpy().tobytes() == bf16.tobytes()


def test_blocks_come_back_as_gguf_py_reads_them(tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    rng = np.random.default_rng(0)
    for kind, (_, block_bytes) in BLOCK_TYPES.items():
        rows = rng.integers(0, 256, (2, 3, 2 * block_bytes), dtype=np.uint8)
        writer.add_tensor(kind, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
    finish(writer)
    checkpoint = GgufFile.open(file)
    for theirs in gguf.GGUFReader(file).tensors:
        info = checkpoint.info(theirs.name)
        blocks = checkpoint.blocks(theirs.name)
        assert info.kind == theirs.tensor_type.name
        assert info.shape == tuple(reversed(theirs.shape.tolist()))
        assert (info.offset, info.size_bytes) == (theirs.data_offset, theirs.n_bytes)
        assert np.array_equal(blocks.numpy(), theirs.data)


def test_quantised_values_survive_the_way_through_the_file(tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    weights = np.random.default_rng(0).standard_normal((8, 64), np.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor("w", quantize(weights, kind), raw_dtype=kind)
    finish(writer)
    blocks = GgufFile.open(file).blocks("w").numpy()
    assert np.array_equal(dequantize(blocks, kind), dequantize(quantize(weights, kind), kind))


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_alignment_of_the_file_is_honoured(tmp_path, alignment):
    u32 = struct.pack("<I", alignment)
    data = forge.gguf(
        [forge.entry("general.alignment", U32, u32)],
        [forge.tensor("a", [2], 0, 0), forge.tensor("b", [1], 24, alignment * 8)],
        struct.pack("<ff", 1, 2) + bytes(alignment * 8 - 8) + b"\x07",
        alignment=alignment,
    )
    checkpoint = GgufFile.open(write(tmp_path, data))
    assert checkpoint.alignment == alignment
    assert checkpoint.tensor("a").tolist() == [1, 2]
    assert checkpoint.tensor("b").tolist() == [7]


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(tmp_path, version):
    checkpoint = GgufFile.open(write(tmp_path, forge.gguf(version=version)))
    assert (checkpoint.version, checkpoint.names()) == (version, ())


def test_asking_for_numbers_of_a_block_tensor_names_its_type(tmp_path):
    checkpoint = GgufFile.open(write(tmp_path, forge.sound_gguf()))
    with pytest.raises(UnsupportedFormatError, match=r"'b\.weight' of .* is stored as Q4_1"):
        checkpoint.tensor("b.weight")


def test_scalar_and_empty_tensors_are_read(tmp_path):
    data = forge.gguf(
        [], [forge.tensor("s", [], 0, 0), forge.tensor("e", [0, 3], 0, 32)], bytes(32)
    )
    checkpoint = GgufFile.open(write(tmp_path, data))
    assert checkpoint.tensor("s").shape == ()
    assert checkpoint.tensor("e").shape == (3, 0)
    assert checkpoint.blocks("e").shape == (3, 0)


def key(name: str | bytes = "k", kind: int = U8, payload: bytes = b"\1") -> bytes:
    return forge.gguf([forge.entry(name, kind, payload)])


def table(*dims: int, kind: int = 0, offset: int = 0, data: bytes = bytes(64)) -> bytes:
    return forge.gguf([], [forge.tensor("a", dims, kind, offset)], data)


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * (depth - 1) + forge.array(U8, [b"\1"])


HUGE = 2**64 - 1
DAMAGED = {
    "only the magic": (b"GGUF", "the header needs 4 bytes, 0 are left"),
    "other magic": (b"GGUX" + forge.gguf()[4:], "does not begin with GGUF"),
    "version 0": (forge.gguf(version=0), "version 0"),
    "too many tensors": (forge.gguf(num_tensors=HUGE), "number of tensors claims"),
    "too many keys": (forge.gguf(num_entries=2**40), "number of metadata entries claims"),
    "tensors cut off": (forge.gguf([], [], bytes(50), num_tensors=2), "tensor 0 has no name"),
    "key of 2**64-1 bytes": (
        forge.gguf([struct.pack("<Q", HUGE) + bytes(20)]),
        "key 0 holds a string of 18446744073709551615 bytes",
    ),
    "key beyond the file": (forge.gguf([struct.pack("<Q", 10**6) + bytes(20)]), "needs 1000000"),
    "key not UTF-8": (key(b"\xff"), "key 0 is not UTF-8"),
    "key empty": (key("") + bytes(9), "is empty or there already"),
    "key twice": (forge.gguf([forge.entry("k", U8, b"\1")] * 2), "is empty or there already"),
    "unknown value type": (key(kind=13), "unknown value type 13"),
    "unknown element type": (key(kind=ARRAY, payload=forge.array(99, [])), "value type 99"),
    "boolean 2": (key(kind=BOOL, payload=b"\2"), "neither 0 nor 1"),
    "boolean 5 in an array": (
        key(kind=ARRAY, payload=forge.array(BOOL, [b"\0", b"\5", b"\1"])),
        "neither 0 nor 1",
    ),
    "string not UTF-8": (key(kind=STRING, payload=forge.text(b"\xc3")), "'k' is not UTF-8"),
    "array longer than the file": (
        key(kind=ARRAY, payload=forge.array(U64, [], count=2**61 + 1)),
        "claims 2305843009213693953 items",
    ),
    "array of more strings than fit": (
        key(kind=ARRAY, payload=forge.array(STRING, [forge.text("a")], count=3)),
        "claims 3 items",
    ),
    "string in an array beyond the file": (
        key(kind=ARRAY, payload=forge.array(STRING, [struct.pack("<Q", HUGE)])),
        "ends beyond the file",
    ),
    "string in an array not UTF-8": (
        key(kind=ARRAY, payload=forge.array(STRING, [forge.text(b"\xff")])),
        "not UTF-8",
    ),
    "arrays nested 5 deep": (key(kind=ARRAY, payload=nested(5)), "deeper than 4"),
    "arrays nested 10,000 deep": (key(kind=ARRAY, payload=nested(10_000)), "deeper than 4"),
    "alignment 0": (key("general.alignment", U32, bytes(4)), "not a power of two"),
    "alignment 48": (key("general.alignment", U32, struct.pack("<I", 48)), "not a power of two"),
    "alignment true": (key("general.alignment", BOOL, b"\1"), "not a power of two"),
    "alignment text": (key("general.alignment", STRING, forge.text("32")), "not a power of two"),
    "alignment beyond the file": (
        forge.gguf(
            [forge.entry("general.alignment", U32, struct.pack("<I", 2**31))],
            [forge.tensor("a", [1], 0, 0)],
            bytes(64),
        ),
        "ends at byte 2147483652",
    ),
    "split.count is text": (key("split.count", STRING, forge.text("2")), "split.count is '2'"),
    "tensor without name": (forge.gguf([], [forge.tensor("", [1], 0, 0)], bytes(64)), "no name"),
    "tensor twice": (
        forge.gguf([], [forge.tensor("a", [1], 0, 0), forge.tensor("a", [1], 0, 32)], bytes(64)),
        "tensor 1 is named 'a' like another one",
    ),
    "5 dimensions": (table(1, 1, 1, 1, 1), "5 dimensions"),
    "unknown tensor type": (table(1, kind=10**6), "unknown type 1000000"),
    "dimension -1": (table(HUGE), "impossible shape"),
    "product wraps to 0": (table(2**32, 2**32), "impossible shape"),
    "empty but torch cannot hold it": (table(2**62, 2**62, 0), "impossible shape"),
    "rows that are no whole blocks": (table(33, kind=3), "rows of 33, Q4_1 comes in blocks of 32"),
    "blocks without dimensions": (table(kind=3), "rows of 1"),
    "misaligned": (table(1, offset=4), "offset 4, not a multiple of 32"),
    "offset beyond the file": (table(1, offset=2**64 - 32), "the file at"),
    "data cut": (table(17), "ends at byte"),
    "overlap": (
        forge.gguf([], [forge.tensor("a", [9], 0, 0), forge.tensor("b", [1], 0, 32)], bytes(64)),
        "'b' overlaps",
    ),
}


@pytest.mark.parametrize(("data", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_is_refused_and_says_why(tmp_path, data, problem):
    file = write(tmp_path, data)
    with pytest.raises(CorruptWeightsError, match=problem) as caught:
        GgufFile.open(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "kind",
    [kind for kind in gguf.GGMLQuantizationType if kind.name not in {*BLOCK_TYPES, *PLAIN, "BF16"}],
    ids=lambda kind: kind.name,
)
def test_type_without_implementation_is_refused_by_name(tmp_path, kind):
    with pytest.raises(UnsupportedFormatError, match=f"tensor 'a' of .* stored as {kind.name},"):
        GgufFile.open(write(tmp_path, table(256, kind=kind)))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (forge.gguf(version=1), "of version 1;"),
        (forge.gguf(version=99), "of version 99;"),
        (forge.gguf(version=3 << 24), "in big endian"),
        (key("split.count", U16, b"\3\0"), "one of 3 parts"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-LFS pointer"),
        (forge.sound_safetensors(), "is a safetensors file, not a GGUF file"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, data, named):
    with pytest.raises(UnsupportedFormatError, match=named) as caught:
        GgufFile.open(write(tmp_path, data))
    assert caught.value.hint


def test_file_of_one_part_is_whole(tmp_path):
    assert GgufFile.open(write(tmp_path, key("split.count", U16, b"\1\0"))).names() == ()


def test_arrays_of_a_file_are_bounded_together(tmp_path):
    big = forge.array(U8, [bytes(1 << 20)], count=1 << 20)
    entries = [forge.entry(name, ARRAY, big) for name in "abc"]
    with pytest.raises(CorruptWeightsError, match="'c' claims 1048576 items"):
        GgufFile.open(write(tmp_path, forge.gguf(entries)))
