"""What augmentation, curricula and replay do: held-out losses after equal numbers of steps.

On stories260K, which learns to write SQL from 200 questions of WikiSQL; three seeds, which
decide the fresh adapter, the order and the copies. Every method takes the same steps. A second
number is the loss on stories, the text that the model knows: what is forgotten.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.trained import test_data
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import AdapterName
from hyprstream.train.augment import AugmentConfig, without_tokens
from hyprstream.train.config import TrainConfig
from hyprstream.train.curriculum import CurriculumConfig, changed, order_of, with_replay
from hyprstream.train.dataset import DataConfig, read_dataset
from hyprstream.train.encode import SampleMaker
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.fit import fit
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

_NAME = AdapterName("learning")
_SEEDS = (0, 1, 2)
_NUM_RECORDS = 300
_NUM_STEPS = 24
_BATCH_TOKENS = 512
_MAX_TOKENS = 256
_MAX_TOKENS_WITH_CONTEXT = 448  # copies with an unrelated text before them fit
_METHODS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "nothing": ({}, {}),
    "rephrase": ({"copies": 2, "rephrase": 1, "casing": 0}, {}),
    "casing": ({"copies": 2, "rephrase": 0, "casing": 1}, {}),
    "shuffling": ({"copies": 2, "rephrase": 0, "casing": 0, "shuffling": 1}, {}),
    "token dropout 0.1": ({"token_dropout": 0.1}, {}),
    "length, competence": ({}, {"difficulty": "length"}),
    "length, sorted": ({}, {"difficulty": "length", "pacing": "sorted"}),
    "loss, competence": ({}, {"difficulty": "loss"}),
    "replay 0.25": ({}, {"replay_share": 0.25}),
}
_WITH_CONTEXT: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "nothing, longer samples": ({}, {}),
    "context": ({"copies": 2, "rephrase": 0, "casing": 0, "context": 1}, {}),
}


def main(rounds: int) -> None:
    """Train each method with each seed; losses do not vary between rounds."""
    del rounds
    torch.set_num_threads(1)
    for longest, methods in ((_MAX_TOKENS, _METHODS), (_MAX_TOKENS_WITH_CONTEXT, _WITH_CONTEXT)):
        with tempfile.TemporaryDirectory() as folder:
            _compare(_Task(Path(folder), longest), methods)


def _compare(task: "_Task", methods: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]):
    base = f"SQL {task.loss(None, task.sql):.3f}, stories {task.loss(None, task.stories):.3f}"
    print(f"base model: {base}")
    plain: list[tuple[float, float]] = []
    for name, (augment, curriculum) in methods.items():
        config = AugmentConfig(**augment), CurriculumConfig(**curriculum)
        found = [task.trained(*config, seed) for seed in _SEEDS]
        plain = plain or found
        _tell(name, found, plain)


def _tell(name: str, losses: list[tuple[float, float]], plain: list[tuple[float, float]]) -> None:
    sides = []
    for side in (0, 1):
        values = [pair[side] for pair in losses]
        changes = [pair[side] - other[side] for pair, other in zip(losses, plain, strict=True)]
        sides.append(
            f"{mean(values):.3f} (sd {stdev(values):.3f}; "
            f"against nothing {mean(changes):+.3f}, sd {stdev(changes):.3f})"
        )
    print(f"{name}: SQL {sides[0]}, stories {sides[1]}", flush=True)


class _Task:
    """The model, what it learns, and what it is judged by."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        opened = open_model(test_data() / "stories260K" / "hf")
        model = opened.load(device=torch.device("cpu"), dtype=torch.float32)
        assert isinstance(model, Decoder)
        self._model, self._trainer = model, Trainer(model)
        self._maker = SampleMaker(
            tokenizer=opened.tokenizer(), template=None, max_tokens=max_tokens
        )
        corpora = test_data() / "corpora"
        self._file = _questions(corpora / "wikisql_mlx" / "train.jsonl", folder / "sql.jsonl")
        self.sql = self._read(self._file).held_out.samples[:40]
        stories = self._read(corpora / "cs336" / "tinystories_sample.txt", share=0.5)
        self._earlier = stories.trained.samples
        self.stories = stories.held_out.samples[:24]

    def loss(self, weights, samples: tuple[Sample, ...]) -> float:
        return Evaluation.of(self._trainer.score(weights, samples)).loss

    def trained(
        self, augment: AugmentConfig, curriculum: CurriculumConfig, seed: int
    ) -> tuple[float, float]:
        """Train an adapter; return its held-out losses on SQL and on stories."""
        samples = self._read(self._file, augment=augment, seed=seed).trained.samples
        lengths = [float(sample.num_computed) for sample in samples]
        by_loss = curriculum.difficulty == "loss"
        order = order_of(curriculum, self._trainer.evaluate(None, samples) if by_loss else lengths)
        order = with_replay(order, self._earlier, curriculum.replay_share)
        if augment.token_dropout:
            drop = partial(without_tokens, share=augment.token_dropout, kept=frozenset({0, 1, 2}))
            order = changed(order, drop)
        spec = LoraSpec(rank=8, alpha=16, targets=_targets(self._model))
        config = TrainConfig(
            learning_rate=1e-2,
            warmup_steps=4,
            schedule="cosine",
            total_steps=_NUM_STEPS,
            final_share=0.1,
            batch_tokens=_BATCH_TOKENS,
            seed=seed,
        )
        start = create(spec, self._model.linears, seed=seed)
        self._trainer.open(_NAME, start, spec=spec, config=config)
        for _ in fit(self._trainer, _NAME, samples, num_steps=_NUM_STEPS, order=order):
            pass
        weights = self._trainer.snapshot(_NAME)
        self._trainer.close(_NAME)
        return self.loss(weights, self.sql), self.loss(weights, self.stories)

    def _read(self, file: Path, *, share: float = 0.3, **options):
        return read_dataset([file], self._maker, DataConfig(held_out_share=share), **options)


def _questions(source: Path, file: Path) -> Path:
    """Take questions apart from their answers, which the source has in one text."""
    rows = []
    for line in source.read_text("utf-8").splitlines()[:_NUM_RECORDS]:
        prompt, mark, answer = json.loads(line)["text"].partition("\nA: ")
        rows.append(json.dumps({"prompt": prompt + mark.rstrip(), "completion": f" {answer}"}))
    file.write_text("\n".join(rows), "utf-8")
    return file


def _targets(model: Decoder) -> tuple[str, ...]:
    return tuple(path for path in model.linears if path != "lm_head")
