"""SafeTensors folders made of GGUF files with an adapter fused in, judged by transformers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from hyprstream.errors import IncompatibleAdapterError, UnsupportedError
from hyprstream.lora.fused.hf_vocabulary import write_vocabulary
from hyprstream.lora.interchange import write_fused
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.checkpoint import GgufFile
from hyprstream.models.load import open_model
from hyprstream.models.tokenizer import Tokenizer
from tests.lora.adapters import packed_logits, random_adapter, random_kinds
from tests.lora.formats.models import CPU, load, ours
from tests.lora.formats.test_fused import FAMILIES, IDS, KINDS, TEXTS, by_transformers
from tests.models import gguf_files
from tests.models.reference import assert_logits_equal, make_model, variants

# Neither has a form in GGUF that the writer of the tests knows.
LEFT_OUT = [("llama", "proportional"), ("qwen3_moe", "some layers dense")]
CASES = [(f, v) for f in FAMILIES for v in variants(f) if (f, v) not in LEFT_OUT]


def save(family, variant, file):
    return gguf_files.write_gguf(make_model(variants(family)[variant]), file)


def loaded(path):
    """A model for short texts: transformers chooses LongRoPE's factors by the text's length."""
    model = open_model(path)
    rope = model.config.ropes[0]
    context = rope.original_context if rope.kind == "longrope" else model.config.context_length
    return model.load(device=CPU, dtype=torch.float32, context_length=context)


@pytest.mark.parametrize(("family", "variant"), CASES, ids=str)
def test_transformers_says_what_we_say(family, variant, tmp_path):
    base = save(family, variant, tmp_path / "base.gguf")
    decoder = loaded(base)
    weights = random_kinds(decoder.linears, KINDS, [4, 2], seed=1)
    write_fused(tmp_path / "out", open_model(base), load(base)[1], weights)
    make_model(variants(family)[variant]).save_pretrained(tmp_path / "theirs")
    names, theirs = (
        load_file(tmp_path / folder / "model.safetensors").keys() - {"lm_head.weight"}
        for folder in ("out", "theirs")
    )
    assert names == theirs
    expected = ours(decoder, weights, IDS)
    assert_logits_equal(by_transformers(tmp_path / "out"), expected)
    assert_logits_equal(packed_logits(loaded(tmp_path / "out"), [IDS], None)[0], expected)
    assert not torch.allclose(expected, packed_logits(decoder, [IDS], None)[0], atol=0.1)


def test_llama_of_which_only_some_channels_rotate_is_refused(tmp_path):
    base = save("llama", "proportional", tmp_path / "base.gguf")
    decoder, host = load(base)
    with pytest.raises(UnsupportedError, match="rotates all channels"):
        write_fused(
            tmp_path / "out", open_model(base), host, random_adapter(decoder.linears, [2], seed=1)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["stories260K-Q8_0", "stories260K-BF16", "stories260K-pad256-Q5_K"]
)
def test_a_real_file_with_its_vocabulary(name, test_data, tmp_path):
    base = test_data / "stories260K" / "gguf" / f"{name}.gguf"
    model, place = open_model(base), tmp_path / "out"
    decoder, host = load(base)
    weights = random_adapter(
        {p: s for p, s in decoder.linears.items() if p != "lm_head"}, [4], seed=1
    )
    write_fused(place, model, host, weights, dtype=torch.float32)
    assert_logits_equal(by_transformers(place), ours(decoder, weights, IDS))
    assert {t.dtype for t in load_file(place / "model.safetensors").values()} == {torch.float32}
    by_default = tmp_path / "default"
    write_fused(by_default, model, host, weights)
    dtypes = {t.dtype for t in load_file(by_default / "model.safetensors").values() if t.ndim > 1}
    assert dtypes == {torch.bfloat16 if "BF16" in name else torch.float16}
    same_ids(model.tokenizer(), place)


def same_ids(tokenizer, place):
    """Transformers and we read the same ids and the same texts from the files."""
    theirs = transformers.AutoTokenizer.from_pretrained(place)
    again = Tokenizer.from_folder(place)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == again.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=True) == again.decode(ids)
        assert again.decode(ids) == tokenizer.decode(ids)
    assert (again.bos_id, again.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids)
    assert again.chat_templates == tokenizer.chat_templates


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ggml-vocab-gpt-2", "ggml-vocab-llama-spm", "vocab-llama-bpe-own", "vocab-qwen2-own"]
)
def test_vocabularies_of_other_models(name, test_data, tmp_path):
    source = test_data / "vocab" / f"{name}.gguf"
    with GgufFile.open(source) as opened:
        metadata = dict(opened.metadata)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    write_vocabulary(tmp_path, metadata, 2048)
    same_ids(Tokenizer.from_gguf(metadata), tmp_path)


def test_an_adapter_for_another_model_is_refused(tmp_path):
    base = save("llama", "plain", tmp_path / "base.gguf")
    host = load(base)[1]
    for path, shape in (("layers.9.mlp.up_proj", (112, 64)), ("layers.0.mlp.up_proj", (64, 64))):
        delta = LowRank(torch.ones(shape[1], 2), torch.ones(2, shape[0]))
        with pytest.raises(IncompatibleAdapterError):
            write_fused(tmp_path / "out", open_model(base), host, LoraWeights({path: delta}))
    assert not (tmp_path / "out").exists()
