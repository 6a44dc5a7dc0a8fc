"""Adapters on every linear layer of every family, against weights with the adapter merged in."""

import pytest
import torch

from hyprstream import lookup
from tests.lora.adapters import (
    make_bank,
    of_tokens,
    packed_logits,
    random_adapter,
    random_kinds,
    save_merged,
)
from tests.models.reference import assert_logits_equal, load_decoder, make_model, variants

FAMILIES = [name for name in lookup.names("hyprstream.models.arch") if name != "bert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_of_a_mixed_batch_equals_its_merged_model(family, tmp_path):
    base = tmp_path / "base"
    make_model(next(iter(variants(family).values()))).save_pretrained(base)
    model = load_decoder(base)
    every_other = dict(list(model.linears.items())[::2])
    adapters = {
        1: random_adapter(model.linears, [4], seed=1),
        2: random_adapter(every_other, [1, 3], seed=2),
        3: random_adapter(model.linears, [8, 2], seed=3),
        4: random_kinds(model.linears, ["sparse"], [1, 2, 3], seed=4),
        5: random_kinds(model.linears, ["tiny"], [8, 3], seed=5),
        6: random_kinds(every_other, ["tiny", "low_rank", "sparse"], [4], seed=6),
    }
    bank = make_bank(model.linears, num_slots=6, max_rank=24)
    for slot, weights in adapters.items():
        bank.write(slot, weights)
    lengths = ((3, 9), (20, 1), (5, 4), (9, 7), (4, 3), (7, 8), (2, 2), (6, 1))
    sequences = [torch.arange(first, first + n) for first, n in lengths]
    slots = [2, 1, 0, 3, 5, 4, 6, 5]

    scores = packed_logits(model, sequences, bank.view(of_tokens(slots, sequences)))

    merged = {}
    for slot, weights in adapters.items():
        save_merged(base, weights, tmp_path / f"merged{slot}")
        merged[slot] = load_decoder(tmp_path / f"merged{slot}")
    for slot, ids, ours in zip(slots, sequences, scores, strict=True):
        if slot == 0:
            continue
        expected = packed_logits(merged[slot], [ids], None)[0]
        assert not torch.allclose(expected, packed_logits(model, [ids], None)[0], atol=1e-2)
        assert_logits_equal(ours, expected)
    without = packed_logits(model, sequences, None)[2]
    if model.config.moe is None:
        assert torch.equal(scores[2].view(torch.int32), without.view(torch.int32))
    else:  # adapters send other rows to other experts, which changes the shapes of products
        assert_logits_equal(scores[2], without)


@pytest.mark.parametrize(
    ("family", "path", "shape"),
    [
        ("llama", "layers.0.self_attn.q_proj", ("heads", "width")),
        ("phi3", "layers.0.mlp.gate_up_proj", ("2 * mlp", "width")),
        ("qwen3_moe", "layers.0.mlp.experts.1.down_proj", ("width", "expert")),
        ("llama", "lm_head", ("vocab", "width")),
    ],
)
def test_a_decoder_lists_its_linear_layers(family, path, shape, tmp_path):
    make_model(next(iter(variants(family).values()))).save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    config = model.config
    sizes = {
        "heads": config.num_heads * config.head_width,
        "width": config.width,
        "2 * mlp": 2 * config.mlp_width,
        "expert": config.moe.width if config.moe else 0,
        "vocab": config.vocab_size,
    }
    assert model.linears[path] == tuple(sizes[name] for name in shape)
