"""A tiny model over bytes, and adapters for it that do something."""

import json
from pathlib import Path

import torch

from hyprstream.engine.generate import next_logits
from hyprstream.engine.kv_cache import SequenceCache
from hyprstream.lora.weights import LoraWeights, pack
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.model import Model
from hyprstream.store.manifest import Draft
from tests.lora.adapters import random_kinds
from tests.models.reference import make_model, variants
from tests.runtime.test_text import byte_tokenizer

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}assistant:"


def make_folder(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**variants("llama")["plain"], "vocab_size": 256}
    make_model(config, seed).save_pretrained(folder)
    byte_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


def trained(model: Model, seed: int, kinds=("low_rank",), ranks=(4, 2)) -> LoraWeights:
    """An adapter of every layer that changes what the model says."""
    linears = {path: shape for path, shape in model.decoder.linears.items() if path != "lm_head"}
    return random_kinds(linears, kinds, ranks, seed)


def made_for(model: Model, codec: str = "zstd", **fields) -> Draft:
    made = {"kinds": ["low_rank"], "spec": {"rank": 4, "alpha": 4.0}, **fields}
    return Draft(base=model.fingerprint, codec=codec, **made)


def same(one: LoraWeights, other: LoraWeights) -> bool:
    return one.fingerprint() == other.fingerprint()


def commit(adapters: Adapters, name: str, model: Model, weights: LoraWeights, codec: str = "zstd"):
    done = adapters.commit(pack(weights), made_for(model, codec))
    adapters.create(name, done.version)
    return done


def first_logits(model: Model, text: str) -> torch.Tensor:
    """What the model scores after a prompt, through the loop that answers."""
    decoder = model.decoder
    cache = SequenceCache(decoder.config, decoder.dtype, decoder.device)
    return next_logits(decoder, cache, model.tokenizer.encode(text), model._bank)
