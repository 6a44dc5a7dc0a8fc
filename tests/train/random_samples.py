"""Samples of random tokens, and a spec, for the tiny models that trainers are tried on."""

import torch

from hyprstream.lora.spec import LoraSpec
from hyprstream.train.sample import Sample

_GENERATOR = torch.Generator().manual_seed(5)
SAMPLES = [
    Sample(
        tuple(torch.randint(97, (length,), generator=_GENERATOR).tolist()),
        tuple(i > 2 for i in range(length)),
        weight,
    )
    for length, weight in [(9, 1.0), (30, 1.0), (5, 2.0), (17, 0.5), (12, 1.0)]
]
TARGETS = ("q_proj", "v_proj", "down_proj", "lm_head")
SPEC = LoraSpec(rank=4, alpha=8, targets=TARGETS)
