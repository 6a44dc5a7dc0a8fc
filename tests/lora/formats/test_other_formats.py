"""Single safetensors files, pickled folders, telling formats apart, and writing whole or not."""

import io
import os
import pickle
import zipfile
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typing_extensions import override

from hyprstream import lookup
from hyprstream.errors import (
    AdapterNotFoundError,
    CorruptError,
    IncompatibleAdapterError,
    InvalidAdapterError,
    InvalidInputError,
    UnavailableError,
    UnsupportedError,
    UnsupportedFormatError,
)
from hyprstream.lora.exchange.files import replacing
from hyprstream.lora.exchange.format import ReadOptions
from hyprstream.lora.exchange.unpickle import as_safetensors
from hyprstream.lora.formats.pytorch import unpickle
from hyprstream.lora.interchange import FORMATS, detect, read_adapter, write_adapter
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights
from tests.lora.adapters import random_adapter
from tests.lora.formats.models import by_peft, load, ours, save_model
from tests.models.reference import assert_logits_equal

IDS = torch.arange(3, 20)
PICKLES = ReadOptions(allow_pickle=True)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(base):
    return load(base)


@pytest.fixture(scope="module")
def weights(model):
    return random_adapter(model[0].linears, [4, 2], seed=4)


@pytest.mark.parametrize("name", lookup.names(FORMATS))
def test_a_format_is_told_by_its_content(name, weights, model, tmp_path):
    write_adapter(tmp_path / "x", weights, model[1], name=name)
    assert detect(tmp_path / "x") == name
    again = read_adapter(tmp_path / "x", model[1], options=PICKLES)
    assert again.weights.fingerprint() == weights.fingerprint()


def make_weights(dtype, ranks, seed, factor):
    """An adapter of two layers."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for rank, (path, (outputs, inputs)) in zip(ranks, LAYERS.items(), strict=True):
        a = torch.randn(inputs, rank, generator=generator)
        b = torch.randn(rank, outputs, generator=generator) * factor
        modules[path] = LowRank(a.to(dtype), b.to(dtype))
    return LoraWeights(modules)


LAYERS = {"layers.0.self_attn.q_proj": (64, 64), "layers.2.mlp.down_proj": (64, 112)}


@pytest.mark.parametrize("name", sorted({*lookup.names(FORMATS)} - {"pytorch"}))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    ranks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32),
    # Down to numbers so small that they have fewer digits.
    factor=st.sampled_from([1e-40, 1e-7, 1.0, 1e3]),
    alpha=st.sampled_from([None, 1, 2, 3, 0.5, 16]),
)
def test_any_adapter_comes_back_bit_by_bit(
    name, *, dtype, ranks, seed, factor, alpha, model, tmp_path
):
    host = model[1]
    assert all(host.linears[path] == shape for path, shape in LAYERS.items())
    weights = make_weights(dtype, ranks, seed, factor)
    patterns = dict(zip(LAYERS, ranks, strict=True))
    spec = None if alpha is None else LoraSpec(rank=4, alpha=alpha, rank_pattern=patterns)
    write_adapter(tmp_path / "x", weights, host, name=name, spec=spec, force=True)
    again = read_adapter(tmp_path / "x", host)
    assert again.weights.fingerprint() == weights.fingerprint()


@pytest.fixture
def single(weights, model, tmp_path):
    """A file as others write it: no settings in its header."""
    write_adapter(tmp_path / "peft", weights, model[1], spec=LoraSpec(rank=4, alpha=4))
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    return tensors, tmp_path / "single.safetensors"


def test_a_file_without_an_alpha_needs_one(single, model):
    tensors, file = single
    save_file(tensors, file)
    with pytest.raises(InvalidAdapterError, match="does not say what its products") as caught:
        read_adapter(file, model[1])
    assert "alpha" in caught.value.hint
    imported = read_adapter(file, model[1], options=ReadOptions(alpha=8))
    assert {(r.rank, r.scale) for r in imported.coverage.modules} == {(4, 2.0), (2, 4.0)}
    assert imported.coverage.is_complete
    for alpha in (0.0, float("nan"), -2.0):
        with pytest.raises(InvalidAdapterError, match="alpha is"):
            read_adapter(file, model[1], options=ReadOptions(alpha=alpha))


@pytest.mark.parametrize("key", ["lora_alpha", "alpha"])
def test_an_alpha_in_the_header_counts(key, single, model):
    tensors, file = single
    save_file(tensors, file, {key: "12"})
    assert {r.scale for r in read_adapter(file, model[1]).coverage.modules} == {3.0, 6.0}
    save_file(tensors, file, {key: "twelve"})
    with pytest.raises(InvalidAdapterError, match="'twelve'"):
        read_adapter(file, model[1])


@pytest.mark.parametrize("strip", ["base_model.model.", "base_model.model.model."])
def test_names_may_lack_their_prefix(strip, single, model):
    tensors, file = single
    if "model.model" in strip:
        tensors = {name: t for name, t in tensors.items() if "lm_head" not in name}
    save_file({name.removeprefix(strip): tensor for name, tensor in tensors.items()}, file)
    imported = read_adapter(file, model[1], options=ReadOptions(alpha=4))
    assert len(imported.coverage.modules) == len(tensors) // 2


def test_names_may_hold_the_name_of_the_adapter(single, model):
    tensors, file = single
    named = {name.replace(".weight", ".default.weight"): t for name, t in tensors.items()}
    save_file(named, file)
    imported = read_adapter(file, model[1], options=ReadOptions(alpha=4))
    assert len(imported.coverage.modules) == len(tensors) // 2
    name = next(iter(tensors))
    save_file({**named, name: tensors[name].clone()}, file)
    with pytest.raises(InvalidAdapterError, match="twice"):
        read_adapter(file, model[1], options=ReadOptions(alpha=4))


def test_a_file_of_a_folder_names_the_folder(weights, model, tmp_path):
    write_adapter(tmp_path / "x", weights, model[1])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert detect(tmp_path / "x" / name) == "peft"
        read_adapter(tmp_path / "x" / name, model[1])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_read_or_a_typed_error(place, byte, cut, weights, model, tmp_path):
    file = tmp_path / "x"
    write_adapter(file, weights, model[1], name="safetensors", force=True)
    data = bytearray(file.read_bytes())
    # Most of the header's bytes are as likely as all of the data's.
    index = int(place * min(len(data) - 1, 9000))
    data[index] = byte
    file.write_bytes(data[:index] if cut else data)
    with suppress(InvalidAdapterError, IncompatibleAdapterError, UnsupportedError, CorruptError):
        read_adapter(file, model[1])


def test_peft_loads_a_pickled_folder(base, weights, model, tmp_path):
    write_adapter(tmp_path / "x", weights, model[1], name="pytorch")
    assert names(tmp_path / "x") == ["adapter_config.json", "adapter_model.bin"]
    assert_logits_equal(ours(model[0], weights, IDS), by_peft(base, tmp_path / "x", IDS))


def test_pickles_are_not_read_unless_allowed(weights, model, tmp_path):
    write_adapter(tmp_path / "x", weights, model[1], name="pytorch")
    with pytest.raises(UnsupportedFormatError, match="pickled") as caught:
        read_adapter(tmp_path / "x", model[1])
    assert "allow" in caught.value.hint


class Touch:
    """A pickle that makes a file when it is read carelessly."""

    def __init__(self, file):
        self.file = file

    @override
    def __reduce__(self):
        return os.mknod, (str(self.file),)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("not a state dict", TypeError),
        ([torch.ones(2)], TypeError),
        ({"a": torch.ones(2), "b": 7}, TypeError),
        ({1: torch.ones(2)}, TypeError),
        ({"a": torch.ones(2, dtype=torch.int64)}, KeyError),
        ({"a": torch.ones(1).expand(1 << 40)}, ValueError),
    ],
    ids=["text", "list", "number", "key", "integers", "a view that claims 4 TB"],
)
def test_only_state_dicts_of_floats_are_passed_on(content, error):
    with pytest.raises(error):
        as_safetensors(content, 1 << 20)


def test_what_the_process_refuses_is_a_typed_error(tmp_path):
    file = tmp_path / "adapter_model.bin"
    torch.save({"a": torch.ones(1).expand(1 << 40)}, file)
    with pytest.raises(InvalidAdapterError, match="no plain state dict"):
        unpickle(file)
    with pytest.raises(InvalidAdapterError, match="cannot be read"):
        unpickle(tmp_path / "nothing")


def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path):
    file, made = tmp_path / "adapter_model.bin", tmp_path / "made"
    torch.save({"a": Touch(made)}, file)
    with pytest.raises(InvalidAdapterError):
        unpickle(file)
    file.write_bytes(pickle.dumps(Touch(made), protocol=2))
    with pytest.raises(InvalidAdapterError):
        unpickle(file)
    assert not made.exists()
    pickle.loads(file.read_bytes())  # noqa: S301 - ours: it does what it says where it may
    assert made.exists()


def test_an_archive_that_unpacks_to_more_than_it_may_is_refused(tmp_path):
    """A storage of zeros, deflated a thousandfold."""
    plain = io.BytesIO()
    torch.save({"a": torch.zeros(1 << 24)}, plain)
    file = tmp_path / "adapter_model.bin"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(InvalidAdapterError):
        unpickle(file)


def test_a_real_old_pickle_is_read_as_tensors(test_data, tmp_path):
    data = unpickle(test_data / "lora" / "bloom-560m_r8_bin" / "adapter_model.bin")
    (tmp_path / "x.safetensors").write_bytes(data)
    ours = load_file(tmp_path / "x.safetensors")
    theirs = torch.load(
        test_data / "lora" / "bloom-560m_r8_bin" / "adapter_model.bin",
        map_location="cpu",
        weights_only=True,
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_what_is_there_stays_unless_it_may_be_replaced(weights, model, tmp_path):
    target = tmp_path / "x"
    write_adapter(target, weights, model[1])
    before = (target / "adapter_model.safetensors").read_bytes()
    with pytest.raises(InvalidInputError, match="is there already"):
        write_adapter(target, weights, model[1], dtype=torch.float16)
    with pytest.raises(InvalidInputError, match="is no file"):
        write_adapter(target, weights, model[1], name="gguf", force=True)
    assert (target / "adapter_model.safetensors").read_bytes() == before
    write_adapter(target, weights, model[1], dtype=torch.float16, force=True)
    assert (target / "adapter_model.safetensors").read_bytes() != before
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_failure_leaves_nothing_behind(is_folder, tmp_path):
    def fails():
        with replacing(tmp_path / "x", force=False, is_folder=is_folder) as place:
            (place / "y" if is_folder else place).write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert not names(tmp_path)


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_appears_in_the_meantime_is_not_replaced(is_folder, tmp_path):
    def overtaken():
        with replacing(tmp_path / "x", force=False, is_folder=is_folder) as place:
            (place / "y" if is_folder else place).write_text("ours")
            (tmp_path / "x").write_text("theirs")

    with pytest.raises(UnavailableError, match="cannot be written"):
        overtaken()
    assert (tmp_path / "x").read_text() == "theirs"
    assert names(tmp_path) == ["x"]


def test_nothing_and_strange_things_are_no_adapters(tmp_path):
    with pytest.raises(AdapterNotFoundError):
        detect(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path, tmp_path / "text"):
        with pytest.raises(UnsupportedFormatError, match="no adapter of a known format"):
            detect(path)
