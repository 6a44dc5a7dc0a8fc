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


@dataclass(frozen=True)
class Case:
    """One batch: the lengths of its samples, and how many tokens at their ends count."""

    lengths: tuple[int, ...]
    counted: int | None = None

    def samples(self) -> list[tuple[list[int], int]]:
        """Tokens of each sample, and the first of them that counts."""
        return [
            ([(7 * i + 13 * n) % 1000 + 20 for i in range(length + 1)],
             1 if self.counted is None else length + 1 - self.counted)
            for n, length in enumerate(self.lengths)
        ]  # fmt: skip


CASES = {
    "even": Case((128,) * 4),
    "answers": Case((128,) * 4, counted=16),
    "uneven": Case((192, 96, 64, 64, 32, 32, 16, 16)),
}

Step = Callable[[Case], float]


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

    def step(case: Case) -> float:
        samples = [Sample.answer(ids[:begin], ids[begin:]) for ids, begin in case.samples()]
        trainer.accumulate(name, samples)
        return trainer.apply(name).loss

    return step


def peft(file: Path, option: str) -> Step:
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.bfloat16, gguf_file=file.name
    )
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    model = peft.get_peft_model(base, config).train()
    if option == "recompute":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, foreach=True)

    def step(case: Case) -> float:
        longest = max(case.lengths) + 1
        ids = torch.zeros(len(case.lengths), longest, dtype=torch.int64)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (tokens, begin) in enumerate(case.samples()):
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


def measure(step: Step, case: Case, before: int) -> dict[str, float]:
    """Take a few steps of one batch; the first, which allocates, is not timed."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    first_loss = step(case)
    started = time.process_time()
    for _ in range(STEPS):
        step(case)
    seconds = (time.process_time() - started) / STEPS
    return {
        "tokens_per_s": sum(case.lengths) / seconds,
        "peak_bytes": peak_bytes() - before,
        "loss": first_loss,
    }


def main(engine: str, path: str, option: str, case: str) -> None:
    torch.set_num_threads(1)
    before = resident_bytes()
    step = {"hyprstream": hyprstream, "peft": peft}[engine](Path(path), option)
    json.dump(measure(step, CASES[case], before), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
