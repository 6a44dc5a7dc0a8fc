"""Every family against transformers: tiny random models, float32 logits."""

import pytest
import torch

from hyprstream import lookup
from hyprstream.models.encoder import Encoder
from hyprstream.models.load import open_model
from tests.models.reference import (
    GOLDEN,
    assert_logits_equal,
    cached_logits,
    load_decoder,
    make_model,
    packed_logits,
    reference_logits,
    variants,
)

FAMILIES = lookup.names("hyprstream.models.arch")
DECODERS = [
    pytest.param(family, name, id=f"{family}: {name}")
    for family in FAMILIES
    if family != "bert"
    for name in variants(family)
]
CPU = torch.device("cpu")


def test_every_family_has_a_tiny_configuration():
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(FAMILIES)


@pytest.mark.parametrize(("family", "name"), DECODERS)
def test_logits_equal_those_of_transformers(family, name, tmp_path):
    config = variants(family)[name]
    reference = make_model(config)
    reference.save_pretrained(tmp_path)
    # LongRoPE picks its factors by the context served; transformers by the length seen.
    context = 32 if "longrope" in name else None
    model = load_decoder(tmp_path, context)
    ids = torch.randint(0, config["vocab_size"], (30,), generator=torch.Generator().manual_seed(1))
    expected = reference_logits(reference, ids)
    assert_logits_equal(packed_logits(model, ids)[0], expected)
    assert_logits_equal(cached_logits(model, ids, 7), expected)
    assert_logits_equal(cached_logits(model, ids, 1), expected)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_long_factors_serve_contexts_beyond_the_original(family, tmp_path):
    config = next(c for name, c in variants(family).items() if "longrope" in name)
    reference = make_model(config)
    reference.save_pretrained(tmp_path)
    ids = torch.arange(50) % config["vocab_size"]
    expected = reference_logits(reference, ids)
    assert_logits_equal(packed_logits(load_decoder(tmp_path), ids)[0], expected)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "bert"])
def test_packed_sequences_do_not_see_each_other(family, tmp_path):
    config = next(iter(variants(family).values()))
    make_model(config).save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    first, second = torch.arange(3, 15), torch.arange(40, 49)
    together = packed_logits(model, first, second)
    assert_logits_equal(together[0], packed_logits(model, first)[0])
    assert_logits_equal(together[1], packed_logits(model, second)[0])


def test_hidden_states_of_an_encoder_equal_those_of_transformers(tmp_path):
    from hyprstream.models.attention import PackedAttention
    from hyprstream.models.forward import ForwardBatch

    reference = make_model(variants("bert")["plain"])
    reference.save_pretrained(tmp_path)
    model = open_model(tmp_path).load(device=CPU, dtype=torch.float32)
    assert isinstance(model, Encoder)
    first, second = torch.arange(5, 25), torch.arange(60, 70)
    batch = ForwardBatch(
        token_ids=torch.cat((first, second)),
        positions=torch.cat((torch.arange(20), torch.arange(10))),
        attention=PackedAttention(model.config.attention, [20, 10], causal=False),
    )
    with torch.no_grad():
        ours = model.forward(batch).split([20, 10])
        theirs = [reference(input_ids=ids[None]).last_hidden_state[0] for ids in (first, second)]
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-5)
