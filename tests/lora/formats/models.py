"""Tiny models with their hosts, and the outside programs that judge what is written."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from hyprstream.lora.exchange.host import Host
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from tests.lora.adapters import make_bank, packed_logits
from tests.models.reference import make_model, variants

CPU = torch.device("cpu")


def save_model(family: str, folder: Path, variant: str | None = None) -> Path:
    """A random model of a family as transformers saves it."""
    configs = variants(family)
    make_model(configs[variant or next(iter(configs))]).save_pretrained(folder)
    return folder


def load(path: Path) -> tuple[Decoder, Host]:
    """A model in float32, and what formats know of it."""
    model = open_model(path)
    decoder = model.load(device=CPU, dtype=torch.float32)
    assert isinstance(decoder, Decoder)
    return decoder, Host.of(model, decoder)


def ours(decoder: Decoder, weights: LoraWeights, ids: Tensor, max_rank: int = 64) -> Tensor:
    """What we score with an adapter."""
    bank = make_bank(decoder.linears, max_rank=max_rank)
    bank.write(1, weights)
    return packed_logits(decoder, [ids], bank.view([1] * len(ids)))[0]


@torch.no_grad()
def by_peft(base: Path, adapter: Path, ids: Tensor) -> Tensor:
    """What PEFT scores with an adapter that it loads from a folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with _quiet():
        adapted = peft.PeftModel.from_pretrained(model, adapter)
    return scores(adapted.eval(), ids)


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT asks transformers for something under its old name, and warns of tied heads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


@torch.no_grad()
def scores(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids[None], use_cache=False).logits[0]


def trained_by_peft(
    base: Path, folder: Path, seed: int = 0, *, with_embeddings: bool = False, **settings: Any
) -> Any:
    """Save an adapter that PEFT has made, all of whose matrices are random; return its model."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with _quiet():
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder, save_embedding_layers=with_embeddings)
    return adapted.eval()


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
