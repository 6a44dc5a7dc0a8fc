"""GGUF adapters: llama.cpp judges what we write; what its converter writes we read."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hyprstream.errors import (
    CorruptWeightsError,
    IncompatibleAdapterError,
    InvalidAdapterError,
    UnsupportedError,
)
from hyprstream.lora.exchange.gguf_file import GgufPart, entry, write_gguf
from hyprstream.lora.interchange import detect, read_adapter, write_adapter
from hyprstream.lora.spec import LoraSpec
from tests.lora.adapters import random_adapter, random_kinds
from tests.lora.formats.llama_cpp_judge import by_llama_cpp
from tests.lora.formats.models import load, ours, save_model, scores, trained_by_peft
from tests.models import gguf_files
from tests.models.reference import assert_logits_equal, make_model, variants

IDS = torch.arange(3, 20)
FAMILIES = [
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma2", "gemma3_text"),
]


def save_gguf(family: str, file: Path) -> Path:
    model = make_model(next(iter(variants(family).values())))
    return gguf_files.write_gguf(model, file, for_llama_cpp=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_gguf("llama", tmp_path_factory.mktemp("llama") / "base.gguf")


@pytest.fixture(scope="module")
def model(base):
    return load(base)


@pytest.mark.parametrize("ranks", [[4], [3, 5]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_loads_what_we_write(family, ranks, tmp_path):
    base = save_gguf(family, tmp_path / "base.gguf")
    decoder, host = load(base)
    linears = {p: s for p, s in decoder.linears.items() if not (p == "lm_head" and host.is_tied)}
    weights = random_adapter(linears, ranks, seed=1)
    file = tmp_path / "adapter.gguf"

    write_adapter(file, weights, host, name="gguf")

    theirs = by_llama_cpp(base, IDS, file)
    # llama.cpp looks up Gemma's GELU in a table of half precision: its base model differs too.
    bound = 1e-2 if family.startswith("gemma") else 1e-4
    torch.testing.assert_close(ours(decoder, weights, IDS), theirs, atol=bound, rtol=bound)
    assert float((theirs - by_llama_cpp(base, IDS)).abs().max()) > 1
    again = read_adapter(file, host)
    assert again.coverage.is_complete
    for path, delta in weights.modules.items():
        assert torch.equal(again.weights.modules[path].dense(), delta.dense())


@pytest.mark.parametrize(
    "spec",
    [
        LoraSpec(rank=4, alpha=8),
        LoraSpec(rank=4, alpha=8, alpha_pattern={"q_proj": 2}),
        LoraSpec(rank=4, alpha=7),
        LoraSpec(rank=4, alpha=8, use_rslora=True),
    ],
    ids=["one alpha", "two alphas", "odd", "rslora"],
)
def test_scales_come_out_as_they_went_in(spec, base, model, tmp_path):
    decoder, host = model
    weights = random_adapter(decoder.linears, [4], seed=2)
    write_adapter(tmp_path / "a.gguf", weights, host, name="gguf", spec=spec)
    assert_logits_equal(ours(decoder, weights, IDS), by_llama_cpp(base, IDS, tmp_path / "a.gguf"))
    again = read_adapter(tmp_path / "a.gguf", host)
    assert again.weights.fingerprint() == weights.fingerprint()
    for report in again.coverage.modules:
        assert again.spec.scale_of(report.path) == report.scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_written_and_read(dtype, base, model, tmp_path):
    decoder, host = model
    weights = random_adapter(decoder.linears, [4], seed=2)
    write_adapter(tmp_path / "a.gguf", weights, host, name="gguf", dtype=dtype)
    again = read_adapter(tmp_path / "a.gguf", host).weights
    assert {d.tensors()["a"].dtype for d in again.modules.values()} == {dtype}
    theirs = by_llama_cpp(base, IDS, tmp_path / "a.gguf")
    torch.testing.assert_close(ours(decoder, again, IDS), theirs, atol=0.1, rtol=0.1)


def test_a_tiny_adapter_is_written_as_its_product(base, model, tmp_path):
    decoder, host = model
    weights = random_kinds(decoder.linears, ["tiny"], [4], seed=3)
    write_adapter(tmp_path / "a.gguf", weights, host, name="gguf")
    assert_logits_equal(ours(decoder, weights, IDS), by_llama_cpp(base, IDS, tmp_path / "a.gguf"))


def test_a_head_that_is_the_embedding_is_refused(tmp_path):
    decoder, host = load(save_gguf("gemma2", tmp_path / "base.gguf"))
    weights = random_adapter({"lm_head": decoder.linears["lm_head"]}, [2], seed=1)
    with pytest.raises(UnsupportedError, match="no weight of its own for lm_head"):
        write_adapter(tmp_path / "a.gguf", weights, host, name="gguf")
    assert not (tmp_path / "a.gguf").exists()


_ARCHES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def as_converter(folder: Path, hf: Any, file: Path, kind: str = "F32", alpha: float = 8.0) -> Path:
    """What llama.cpp's convert_lora_to_gguf.py makes of a PEFT folder.

    Beside the tensors it writes what its converter of models always writes: the type of the
    file, the version of the quantised formats and a name.
    """
    arch = _ARCHES[hf.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(folder.name)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    names = gguf.get_tensor_name_map(arch, hf.num_hidden_layers)
    for name, tensor in sorted(load_file(folder / "adapter_model.safetensors").items()):
        stem, _, side = name.removeprefix("base_model.model.").rpartition(".lora_")
        is_b = side.startswith("B")
        data = tensor
        heads = {"q_proj": hf.num_attention_heads, "k_proj": hf.num_key_value_heads}
        num_heads = heads.get(stem.rpartition(".")[2])
        if is_b and num_heads is not None and hf.model_type == "llama":
            data = gguf_files._permuted(tensor, num_heads)
        stored = names.get_name(stem)
        array = np.ascontiguousarray(data.float().numpy())
        quantized = gguf.GGMLQuantizationType[kind]
        if kind != "F32":
            array = gguf.quants.quantize(array, quantized)
        full = f"{stored}.weight.lora_{'b' if is_b else 'a'}"
        writer.add_tensor(full, array, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("kind", "rank"), [("F32", 3), ("F16", 3), ("BF16", 3), ("Q8_0", 32)])
def test_what_the_converter_writes_gives_the_logits_of_peft(kind, rank, tmp_path):
    base = save_model("llama", tmp_path / "base")
    adapted = trained_by_peft(
        base,
        tmp_path / "peft",
        r=rank,
        lora_alpha=8,
        target_modules=["q_proj", "k_proj", "v_proj", "up_proj"],
    )
    file = as_converter(tmp_path / "peft", adapted.base_model.model.config, tmp_path / "a", kind)
    decoder, host = load(base)

    imported = read_adapter(file, host)

    assert detect(file) == "gguf"
    assert imported.coverage.is_complete
    assert imported.spec.scale == 8 / rank
    assert set(imported.spec.targets) == {"q_proj", "k_proj", "v_proj", "up_proj"}
    bound = {"F32": 1e-4, "F16": 1e-2}.get(kind, 0.3)
    scored = ours(decoder, imported.weights, IDS)
    torch.testing.assert_close(scored, scores(adapted, IDS), atol=bound, rtol=bound)


@pytest.mark.parametrize("family", _ARCHES)
def test_through_the_converter_and_directly_an_adapter_is_the_same(family, tmp_path):
    """And what we export is tensor by tensor what the converter makes of the same folder."""
    base = save_model(family, tmp_path / "base")
    adapted = trained_by_peft(
        base, tmp_path / "peft", r=4, lora_alpha=8, target_modules="all-linear"
    )
    file = as_converter(tmp_path / "peft", adapted.base_model.model.config, tmp_path / "a.gguf")
    decoder, host = load(base)

    converted = read_adapter(file, host)
    direct = read_adapter(tmp_path / "peft", host)

    assert converted.coverage.is_complete
    assert converted.weights.fingerprint() == direct.weights.fingerprint()
    assert converted.spec.scale == direct.spec.scale
    assert_logits_equal(ours(decoder, converted.weights, IDS), scores(adapted, IDS))
    exported = tmp_path / "b.gguf"
    write_adapter(exported, direct.weights, host, name="gguf", spec=direct.spec)
    written, theirs = (gguf.GGUFReader(path) for path in (exported, file))
    for key in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha"):
        assert written.fields[key].contents() == theirs.fields[key].contents()
    tensors = [{t.name: t.data for t in reader.tensors} for reader in (written, theirs)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[1])
    model_file = save_gguf(family, tmp_path / "base.gguf")
    by_both = [by_llama_cpp(model_file, IDS, path) for path in (exported, file)]
    assert torch.equal(*by_both)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"general.type": "model"}, InvalidAdapterError, "type 'model', no adapter"),
        ({"general.architecture": "qwen2"}, InvalidAdapterError, "family 'qwen2'"),
        ({"adapter.type": "control"}, UnsupportedError, "'control'"),
        ({"adapter.lora.alpha": -1.0}, InvalidAdapterError, "alpha is -1"),
        ({"adapter.lora.alpha": float("nan")}, InvalidAdapterError, "alpha is nan"),
        ({"adapter.lora.alpha": 8}, InvalidAdapterError, "alpha is 8"),
        ({"adapter.alora.invocation_tokens": [5]}, UnsupportedError, "aLoRA"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_followed_are_refused(entries, error, message, model, tmp_path):
    with pytest.raises(error, match=message):
        read_adapter(written(tmp_path / "a.gguf", entries), model[1])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"b": torch.ones(64, 3)}, InvalidAdapterError, "shape"),
        ({"b": torch.ones(63, 2)}, IncompatibleAdapterError, "63"),
        ({"a": torch.full((2, 64), torch.inf)}, InvalidAdapterError, "no finite number"),
        ({"a": torch.ones(1, 2, 64)}, InvalidAdapterError, "shape"),
        ({"magnitude": torch.ones(1, 2)}, UnsupportedError, "lora_magnitude"),
        ({"a": None}, InvalidAdapterError, "only lora_b"),
    ],
    ids=["ranks", "outputs", "infinite", "three axes", "another part", "alone"],
)
def test_tensors_that_contradict_one_another_are_refused(changed, error, message, model, tmp_path):
    with pytest.raises(error, match=message):
        read_adapter(written(tmp_path / "a.gguf", {}, changed), model[1])


def test_a_file_without_a_layer_of_the_model_is_refused(model, tmp_path):
    file = written(tmp_path / "a.gguf", {}, name="blk.77.attn_v.weight")
    with pytest.raises(InvalidAdapterError, match=r"it holds blk\.77\.attn_v\.weight"):
        read_adapter(file, model[1])


def test_every_truncation_is_a_typed_error(model, tmp_path):
    data = written(tmp_path / "a.gguf", {}).read_bytes()
    file = tmp_path / "cut.gguf"
    for length in range(4, len(data), 41):
        file.write_bytes(data[:length])
        with pytest.raises(CorruptWeightsError):
            read_adapter(file, model[1])


def written(file: Path, entries: dict, changed: dict | None = None, name="blk.0.attn_v.weight"):
    """A small adapter with some metadata and tensors replaced, or left out."""
    metadata = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    } | entries
    tensors = {"a": torch.ones(2, 64), "b": torch.ones(32, 2)} | (changed or {})
    write_gguf(
        file,
        [entry(key, value) for key, value in metadata.items()],
        {f"{name}.lora_{s}": GgufPart.of(t) for s, t in tensors.items() if t is not None},
    )
    return file
