"""Training steps of one engine, one process, one thread: prints what it measured as JSON.

Times are processor seconds of this process. Peak memory is that of the steps, beyond what the
interpreter and the libraries take; what loading needed for a moment does not count.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.worker import peak_bytes, resident_bytes

RANK = 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS = 2
LEARNING_RATE = 2e-4


# Tokens, and the first of them that counts.
Sample = tuple[list[int], int]


@dataclass(frozen=True)
class Batch:
    """The samples of one step."""

    samples: tuple[Sample, ...]

    @classmethod
    def made(cls, lengths: tuple[int, ...], counted: int | None = None) -> "Batch":
        """Samples of these lengths, of which all tokens count or so many at the end."""
        return cls(
            tuple(
                (
                    [(7 * i + 13 * n) % 1000 + 20 for i in range(length + 1)],
                    1 if counted is None else length + 1 - counted,
                )
                for n, length in enumerate(lengths)
            )
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample that are computed."""
        return [len(ids) - 1 for ids, _ in self.samples]

    @property
    def described(self) -> str:
        """What it is, in words."""
        counts = sum(len(ids) - begin for ids, begin in self.samples)
        return f"samples of {self.lengths} tokens, of which {counts} count"


CASES = {
    "even": Batch.made((128,) * 4),
    "answers": Batch.made((128,) * 4, counted=16),
    "uneven": Batch.made((192, 96, 64, 64, 32, 32, 16, 16)),
}

Step = Callable[[Batch], float]


def hyprstream(file: Path, option: str) -> Step:
    from hyprstream.lora.create import create
    from hyprstream.lora.spec import LoraSpec
    from hyprstream.models.decoder import Decoder
    from hyprstream.models.load import open_model
    from hyprstream.refs import AdapterName
    from hyprstream.runtime.device import choose_dtype, settle_memory
    from hyprstream.train.config import TrainConfig
    from hyprstream.train.sample import Sample
    from hyprstream.train.trainer import Trainer

    opened, cpu = open_model(file), torch.device("cpu")
    stored = option == "stored"
    model = opened.load(
        device=cpu,
        dtype=choose_dtype("auto" if stored else "bfloat16", cpu, opened),
        expand=not stored,
    )
    assert isinstance(model, Decoder)
    settle_memory()
    trainer, name = Trainer(model), AdapterName("a")
    spec = LoraSpec(rank=RANK, alpha=2 * RANK, targets=TARGETS)
    config = TrainConfig(learning_rate=LEARNING_RATE, recompute=option == "recompute")
    trainer.open(name, create(spec, model.linears), spec=spec, config=config)

    def step(batch: Batch) -> float:
        samples = [Sample.answer(ids[:begin], ids[begin:]) for ids, begin in batch.samples]
        trainer.accumulate(name, samples)
        return trainer.apply(name).loss

    return step


def peft(file: Path, option: str) -> Step:
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = {"gguf_file": file.name} if file.is_file() else {}
    base = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent if place else file, dtype=torch.bfloat16, **place
    )
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    model = peft.get_peft_model(base, config).train()
    if option == "recompute":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, foreach=True)

    def step(batch: Batch) -> float:
        longest = max(batch.lengths) + 1
        ids = torch.zeros(len(batch.samples), longest, dtype=torch.int64)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (tokens, begin) in enumerate(batch.samples):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, begin : len(tokens)] = ids[row, begin : len(tokens)]
            mask[row, : len(tokens)] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def measure(step: Step, batches: list[Batch], before: int) -> dict[str, float]:
    """Take a few steps; the first, which allocates, is not timed."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    first, *rest = batches if len(batches) > 1 else batches * (STEPS + 1)
    first_loss = step(first)
    started = time.process_time()
    for batch in rest:
        step(batch)
    seconds = time.process_time() - started
    return {
        "tokens_per_s": sum(sum(batch.lengths) for batch in rest) / seconds,
        "peak_bytes": peak_bytes() - before,
        "loss": first_loss,
    }


def main(engine: str, path: str, option: str, batches: str) -> None:
    torch.set_num_threads(1)
    before = resident_bytes()
    step = {"hyprstream": hyprstream, "peft": peft}[engine](Path(path), option)
    chosen = [
        Batch(tuple((ids, begin) for ids, begin in samples))
        for samples in json.loads(Path(batches).read_text())
    ]
    json.dump(measure(step, chosen, before), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
