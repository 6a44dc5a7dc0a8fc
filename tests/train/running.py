"""A tiny model, samples, and runs on them; as a program, a run that saves every step.

    python -m tests.train.running MODEL FOLDER NUM_STEPS

prints a line for each step, so that whoever started it can kill it between two of them.
"""

import sys
from pathlib import Path

import torch

from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import AdapterName
from hyprstream.train.config import TrainConfig
from hyprstream.train.lessons import lessons_of
from hyprstream.train.resume import load_run, save_run, saved_settings
from hyprstream.train.run import Run, RunConfig, Saved
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

A = AdapterName("a")
TARGETS = ("q_proj", "v_proj", "down_proj")


def random_samples(seed: int, count: int) -> list[Sample]:
    """Sequences in which the next token follows from the last one, and so can be learnt."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        token, length = (int(n) for n in torch.randint(8, 20, (2,), generator=generator))
        ids = [token]
        while len(ids) < length:
            ids.append((ids[-1] * 5 + 3) % 90)
        samples.append(Sample(tuple(ids), tuple(i > 1 for i in range(length))))
    return samples


SAMPLES, HELD_OUT = random_samples(1, 24), random_samples(2, 6)
SPEC = LoraSpec(rank=4, alpha=6, targets=TARGETS, dropout=0.2)
CONFIG = TrainConfig(
    learning_rate=1e-2, warmup_steps=2, schedule="cosine", total_steps=30, batch_tokens=64
)


def run_on(
    model: Decoder,
    *,
    run: RunConfig,
    spec: LoraSpec = SPEC,
    config: TrainConfig = CONFIG,
    saved: Saved | None = None,
    held_out=HELD_OUT,
    **options,
) -> tuple[Run, Trainer]:
    trainer = Trainer(model)
    if saved is None:
        start = create(spec, model.linears, seed=1, base=BaseLayers(model.weights))
    else:
        start = saved.current
    trainer.open(A, start, spec=spec, config=config)
    lessons = lessons_of(trainer, A, SAMPLES, held_out)
    return Run(trainer, A, lessons, run, saved=saved, **options), trainer


def main(model: Path, folder: Path, num_steps: int) -> None:
    torch.set_num_threads(1)
    decoder = open_model(model).load(device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(decoder, Decoder)
    saved = None if saved_settings(folder) is None else load_run(folder)
    run, _ = run_on(decoder, run=RunConfig(num_steps=num_steps, save_every=1), saved=saved)
    print("from", run.num_steps_done, flush=True)  # noqa: T201  # a program of the tests
    for progress in run.steps():
        save_run(folder, run.saved(), {})
        print("step", progress.point.step, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
