"""Whole models with an adapter fused in, judged by transformers and llama.cpp."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hyprstream.errors import (
    IncompatibleAdapterError,
    InvalidAdapterError,
    InvalidInputError,
    UnsupportedError,
    UnsupportedTokenizerError,
)
from hyprstream.lora.fused.gguf_vocabulary import vocabulary_entries
from hyprstream.lora.interchange import write_fused
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights, combine
from hyprstream.models.checkpoint import GgufFile
from hyprstream.models.load import open_model
from hyprstream.models.tokenizer import Tokenizer
from tests.lora.adapters import packed_logits, random_adapter, random_kinds
from tests.lora.formats.llama_cpp_judge import by_llama_cpp, ids_by_llama_cpp
from tests.lora.formats.models import load, ours, save_model, scores
from tests.lora.formats.test_gguf_format import save_gguf
from tests.models.reference import assert_logits_equal, make_model, variants

IDS = torch.arange(3, 20)
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma2", "gemma3_text"]
KINDS = ["low_rank", "sparse", "tiny"]
TEXTS = [
    "Once upon a time, there was a girl.",
    "  two  blanks\n\nand caf\u00e9 \U0001f600 12345 it's",
]


def by_transformers(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return scores(model.eval(), IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_a_fused_folder(family, tmp_path):
    base = save_model(family, tmp_path / "base")
    decoder, host = load(base)
    weights = random_kinds(decoder.linears, KINDS, [4, 2], seed=1)

    write_fused(tmp_path / "out", open_model(base), host, weights)

    expected = ours(decoder, weights, IDS)
    assert_logits_equal(by_transformers(tmp_path / "out"), expected)
    assert_logits_equal(packed_logits(load(tmp_path / "out")[0], [IDS], None)[0], expected)
    assert not torch.allclose(expected, packed_logits(decoder, [IDS], None)[0], atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_loads_a_fused_file(family, tmp_path):
    base = save_gguf(family, tmp_path / "base.gguf")
    decoder, host = load(base)
    linears = dict(decoder.linears)
    if family == "gemma2":  # llama.cpp cannot give it another head
        del linears["lm_head"]
    weights = random_kinds(linears, KINDS, [4, 2], seed=1)

    write_fused(tmp_path / "out.gguf", open_model(base), host, weights, name="gguf")

    expected = ours(decoder, weights, IDS)
    # llama.cpp looks up Gemma's GELU in a table of half precision: its base model differs too.
    bound = 1e-2 if family.startswith("gemma") else 1e-4
    theirs = by_llama_cpp(tmp_path / "out.gguf", IDS)
    torch.testing.assert_close(theirs, expected, atol=bound, rtol=bound)
    assert_logits_equal(packed_logits(load(tmp_path / "out.gguf")[0], [IDS], None)[0], expected)


@pytest.mark.parametrize("name", ["stories260K-Q8_0", "stories260K-BF16", "llamacpp/Q4_K_M"])
def test_what_an_adapter_does_not_change_is_taken_over_byte_by_byte(name, test_data, tmp_path):
    folder = test_data / "stories260K" / "gguf"
    found = [f for f in folder.rglob("*.gguf") if name.split("/")[-1] in f.name]
    assert found
    decoder, host = load(found[0])
    linears = {p: s for p, s in decoder.linears.items() if p.endswith(("q_proj", "down_proj"))}
    weights = random_adapter(linears, [4], seed=2)
    out = tmp_path / "out.gguf"
    write_fused(out, open_model(found[0]), host, weights, name="gguf", dtype=torch.float32)
    with GgufFile.open(found[0]) as old, GgufFile.open(out) as new:
        assert dict(old.metadata) == dict(new.metadata)
        assert old.names() == new.names()
        changed = [n for n in old.names() if "attn_q.weight" in n or "ffn_down.weight" in n]
        for tensor in old.names():
            if tensor in changed:
                assert new.info(tensor).kind == "F32"
            else:
                assert new.info(tensor).kind == old.info(tensor).kind
                assert torch.equal(new.blocks(tensor), old.blocks(tensor))
    scored = packed_logits(load(out)[0], [IDS], None)[0]
    assert_logits_equal(scored, ours(decoder, weights, IDS))
    # Products with quantised weights round their inputs in llama.cpp.
    assert float((by_llama_cpp(out, IDS) - scored).abs().mean()) < 0.1


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float16, 2e-2), (torch.bfloat16, 0.2)], ids=str
)
@pytest.mark.parametrize("name", ["safetensors", "gguf"])
def test_a_model_is_written_in_the_dtype_asked_for(name, dtype, bound, tmp_path, test_data):
    base = test_data / "stories260K" / "hf"
    decoder, host = load(base)
    weights = random_adapter(decoder.linears, [4], seed=1)
    out = tmp_path / "out"
    write_fused(out, open_model(base), host, weights, name=name, dtype=dtype)
    scored = packed_logits(load(out)[0], [IDS], None)[0]
    torch.testing.assert_close(scored, ours(decoder, weights, IDS), atol=bound, rtol=bound)
    if name == "safetensors":
        stored = {t.dtype for t in load_file(out / "model.safetensors").values()}
        assert stored == {dtype}
        assert json.loads((out / "config.json").read_text())["torch_dtype"] in str(dtype)
    else:
        assert open_model(out).checkpoint.tensor("blk.0.attn_q.weight").dtype == dtype


def test_a_folder_comes_with_its_tokenizer_and_without_other_weights(test_data, tmp_path):
    base = test_data / "stories260K" / "hf_sharded_fp16"
    decoder, host = load(base)
    weights = random_adapter(decoder.linears, [4], seed=1)
    write_fused(tmp_path / "out", open_model(base), host, weights)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    kept = {f.name for f in base.iterdir()} - {f.name for f in base.glob("*safetensors*")}
    assert names == kept | {"model.safetensors"}
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS[0])["input_ids"]
    assert ids == Tokenizer.from_folder(base).encode(TEXTS[0])


def test_a_head_that_was_the_embedding_becomes_a_table_of_its_own(test_data, tmp_path):
    base = test_data / "stories260K" / "hf"
    decoder, host = load(base)
    assert host.is_tied
    weights = random_adapter({"lm_head": decoder.linears["lm_head"]}, [4], seed=1)
    expected = ours(decoder, weights, IDS)
    write_fused(tmp_path / "out", open_model(base), host, weights)
    assert_logits_equal(by_transformers(tmp_path / "out"), expected)
    for source in (base, test_data / "stories260K" / "gguf" / "stories260K-F32.gguf"):
        model = open_model(source)
        write_fused(tmp_path / "g", model, load(source)[1], weights, name="gguf", force=True)
        assert_logits_equal(by_llama_cpp(tmp_path / "g", IDS), expected)


def test_a_head_that_llama_cpp_cannot_have_is_refused(tmp_path):
    base = save_gguf("gemma2", tmp_path / "base.gguf")
    decoder, host = load(base)
    weights = random_adapter({"lm_head": decoder.linears["lm_head"]}, [4], seed=1)
    with pytest.raises(UnsupportedError, match="no head of its own for family 'gemma2'"):
        write_fused(tmp_path / "out", open_model(base), host, weights, name="gguf")


@pytest.mark.parametrize("name", ["hf", "hf_sharded_fp16", "hf_pad256"])
def test_a_safetensors_model_becomes_a_gguf_file(name, test_data, tmp_path):
    base = test_data / "stories260K" / name
    decoder, host = load(base)
    weights = random_kinds(decoder.linears, KINDS, [4], seed=3)
    out = tmp_path / "out.gguf"

    write_fused(out, open_model(base), host, weights, name="gguf", dtype=torch.float32)

    assert_logits_equal(by_llama_cpp(out, IDS), ours(decoder, weights, IDS))
    theirs = test_data / "stories260K" / "gguf" / "stories260K-F32.gguf"
    with GgufFile.open(out) as new, GgufFile.open(theirs) as reference:
        for key, value in reference.metadata.items():
            if key.startswith("tokenizer.ggml.") and key in new.metadata and "scores" not in key:
                assert new.metadata[key] == value, key
        if name == "hf":
            for key, value in reference.metadata.items():
                if key.startswith("llama."):
                    assert new.metadata[key] == value, key
            assert set(new.names()) | {"output.weight"} == {*reference.names(), "output.weight"}
    tokenizer = Tokenizer.from_folder(base)
    again = open_model(out).tokenizer()
    for text, theirs in zip(TEXTS, ids_by_llama_cpp(out, TEXTS), strict=True):
        assert theirs == tokenizer.encode(text)
        assert again.encode(text) == theirs


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": None}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": LINEAR}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
    ],
    ids=["qwen2", "qwen3", "mistral", "llama 3.1", "linear", "biases"],
)
def test_families_become_gguf_files(family, changes, test_data, tmp_path):
    config = next(iter(variants(family).values())) | {"vocab_size": 512} | changes
    base = tmp_path / "base"
    make_model(config).save_pretrained(base)
    shutil.copy(test_data / "stories260K" / "hf" / "tokenizer.json", base)
    decoder, host = load(base)
    weights = random_kinds(decoder.linears, KINDS, [4], seed=1)
    write_fused(tmp_path / "out.gguf", open_model(base), host, weights, name="gguf")
    expected = ours(decoder, weights, IDS)
    assert_logits_equal(by_llama_cpp(tmp_path / "out.gguf", IDS), expected)
    assert_logits_equal(packed_logits(load(tmp_path / "out.gguf")[0], [IDS], None)[0], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": LINEAR | {"rope_type": "dynamic"}}, "rotary scaling dynamic"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding window"),
        ({"model_type": "qwen3", "attention_bias": True}, "no biases of a qwen3"),
    ],
    ids=["rotary", "window", "biases"],
)
def test_a_variant_without_a_known_form_is_refused(changes, message, tmp_path):
    family = changes.get("model_type", "llama")
    base = tmp_path / "base"
    make_model(next(iter(variants(family).values())) | changes).save_pretrained(base)
    decoder, host = load(base)
    weights = random_adapter(decoder.linears, [4], seed=1)
    with pytest.raises(UnsupportedError, match=message):
        write_fused(tmp_path / "out", open_model(base), host, weights, name="gguf")


def test_a_byte_level_vocabulary_becomes_that_of_a_gguf_file(test_data, tmp_path):
    described = json.loads((test_data / "tokenizers" / "qwen2.5" / "tokenizer.json").read_text())
    # The whole one takes seconds to read, many times; its first part is a vocabulary as well.
    num_merges, num_bytes = 3000, 256
    vocab = {t: i for t, i in described["model"]["vocab"].items() if i < num_bytes + num_merges}
    described["model"] |= {"vocab": vocab, "merges": described["model"]["merges"][:num_merges]}
    end = {**described["added_tokens"][0], "id": num_bytes + num_merges, "content": "<|im_end|>"}
    described["added_tokens"] = [end]
    base = tmp_path / "base"
    make_model(next(iter(variants("qwen2").values())) | {"vocab_size": 3300}).save_pretrained(base)
    (base / "tokenizer.json").write_text(json.dumps(described))
    (base / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    decoder, host = load(base)
    weights = random_adapter(decoder.linears, [4], seed=1)
    write_fused(tmp_path / "out.gguf", open_model(base), host, weights, name="gguf")
    tokenizer = Tokenizer.from_folder(base)
    again = open_model(tmp_path / "out.gguf").tokenizer()
    # The tiny model's config.json names another one.
    assert again.eos_ids == tokenizer.eos_ids == {2, num_bytes + num_merges}
    for text, theirs in zip(TEXTS, ids_by_llama_cpp(tmp_path / "out.gguf", TEXTS), strict=True):
        assert theirs == tokenizer.encode(text)
        assert again.encode(text) == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer"),
        ({"model": {"type": "Unigram", "vocab": {}}}, "Unigram"),
    ],
    ids=str,
)
def test_a_tokenizer_that_llama_cpp_would_rebuild_otherwise_is_refused(
    change, message, test_data, tmp_path
):
    source = test_data / "stories260K" / "hf"
    described = json.loads((source / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(described | change))
    with pytest.raises(UnsupportedTokenizerError, match=message):
        vocabulary_entries(tmp_path, Tokenizer.from_folder(source), 512)


def test_merges_that_scores_cannot_express_are_refused(test_data, tmp_path):
    source = test_data / "stories260K" / "hf"
    described = json.loads((source / "tokenizer.json").read_text())
    merges = described["model"]["merges"]
    described["model"]["merges"] = merges[:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UnsupportedTokenizerError, match="and no merge"):
        vocabulary_entries(tmp_path, Tokenizer.from_folder(source), 512)
    described["model"]["merges"] = [*merges, merges[0]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UnsupportedTokenizerError, match="several ranks"):
        vocabulary_entries(tmp_path, Tokenizer.from_folder(source), 512)


@pytest.mark.parametrize("family", ["phi3", "gemma2", "qwen3_moe"])
def test_other_families_are_refused_by_name(family, tmp_path):
    base = save_model(family, tmp_path / "base")
    decoder, host = load(base)
    weights = random_adapter(decoder.linears, [4], seed=1)
    with pytest.raises(UnsupportedError, match=f"family '{family}'"):
        write_fused(tmp_path / "out", open_model(base), host, weights, name="gguf")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    base = save_model("llama", tmp_path / "base")
    decoder, host = load(base)
    model = open_model(base)
    sound = random_adapter(decoder.linears, [4], seed=1)
    strange = LoraWeights({"layers.9.q_proj": LowRank(torch.ones(4, 1), torch.ones(1, 4))})
    small = LoraWeights({"layers.0.self_attn.q_proj": LowRank(torch.ones(4, 1), torch.ones(1, 4))})
    for weights in (strange, small):
        with pytest.raises(IncompatibleAdapterError):
            write_fused(tmp_path / "out", model, host, weights)
    with pytest.raises(InvalidAdapterError, match=r"torch\.float16 cannot"):
        write_fused(tmp_path / "out", model, host, combine([(sound, 1e6)]), dtype=torch.float16)
    with pytest.raises(InvalidAdapterError, match="changes no layer"):
        write_fused(tmp_path / "out", model, host, LoraWeights({}))
    assert [file.name for file in tmp_path.iterdir()] == ["base"]
    with pytest.raises(InvalidInputError, match="is there already"):
        write_fused(base, model, host, sound)
