"""Every family from GGUF: the file that llama.cpp's converter would write, float32 logits."""

import pytest
import torch

from hyprstream.models.load import open_model
from tests.models.gguf_files import write_gguf
from tests.models.reference import (
    assert_logits_equal,
    cached_logits,
    load_decoder,
    make_model,
    packed_logits,
    reference_logits,
    variants,
)
from tests.models.test_arch import CPU, DECODERS

# What GGUF has no key for, so that no such file exists: other rotary kinds, windows of mistral
# and qwen, dense layers among experts.
_ONLY_IN_SAFETENSORS = {
    "dynamic",
    "proportional",
    "yarn with mscale",
    "yarn not truncated",
    "windowed",
    "tied, biased, windowed",
    "some layers dense",
    "scaled",
}
IN_GGUF = [case for case in DECODERS if case.values[1] not in _ONLY_IN_SAFETENSORS]


def gguf_variant(family: str, name: str) -> dict[str, object]:
    config = variants(family)[name]
    if family == "gemma2":  # the scale has no key either; llama.cpp takes the head width
        config["query_pre_attn_scalar"] = config["head_dim"]
    if family == "gemma3_text":
        config["query_pre_attn_scalar"] = config["head_dim"]
    return config


@pytest.mark.parametrize(("family", "name"), IN_GGUF)
def test_logits_of_a_gguf_file_equal_those_of_transformers(family, name, tmp_path):
    config = gguf_variant(family, name)
    reference = make_model(config)
    file = write_gguf(reference, tmp_path / "model.gguf")
    context = 32 if "longrope" in name else None
    model = load_decoder(file, context)
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(1))
    expected = reference_logits(reference, ids)
    assert_logits_equal(packed_logits(model, ids)[0], expected)
    assert_logits_equal(cached_logits(model, ids, 7), expected)


def test_an_encoder_in_a_gguf_file_equals_transformers(tmp_path):
    from hyprstream.models.attention import PackedAttention
    from hyprstream.models.forward import ForwardBatch

    reference = make_model(variants("bert")["plain"])
    file = write_gguf(reference, tmp_path / "model.gguf")
    model = open_model(file).load(device=CPU, dtype=torch.float32)
    ids = torch.arange(5, 25)
    attention = PackedAttention(model.config.attention, [20], causal=False)
    batch = ForwardBatch(token_ids=ids, positions=torch.arange(20), attention=attention)
    with torch.no_grad():
        expected = reference(input_ids=ids[None]).last_hidden_state[0]
        torch.testing.assert_close(model.forward(batch), expected, atol=1e-5, rtol=1e-5)
