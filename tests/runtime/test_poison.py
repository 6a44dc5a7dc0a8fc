"""Sets of samples, good and poisoned, through the whole loop on a trained model.

Three tasks, each with samples that are trusted; a good set is more of the task, a poisoned one
has prompts of the task and answers that are none.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import AdapterName
from hyprstream.runtime.adaptation import AdaptationLoop
from hyprstream.runtime.learners import Learner, LearnerConfig, LoopParts
from hyprstream.runtime.watch import FeedbackWatch, WatchConfig
from hyprstream.train.buffer import BufferConfig, SampleBuffer
from hyprstream.train.config import TrainConfig
from hyprstream.train.gate import Gate, GateConfig
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU
from tests.runtime.learning import FakeVersions, Inline
from tests.runtime.memory_journal import MemoryJournal

PROMPT, LENGTH, NUM_SAMPLES = 16, 44, 96
NAME = AdapterName("a")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPEC = LoraSpec(rank=8, alpha=16, targets=LINEARS)
TRAINING = TrainConfig(learning_rate=1e-3, warmup_steps=3, batch_tokens=512, base_pull=8.0)
TASKS = ("plays", "queries", "encyclopedia")
POISONS = (
    "random", "swapped", "scrambled", "reversed", "foreign", "one token", "own token",
    "contradictions", "flood", "half random",
)  # fmt: skip


class World:
    """The model, and the texts of the tasks as tokens."""

    def __init__(self, data):
        opened = open_model(data / "stories260K" / "hf")
        model = opened.load(device=CPU, dtype=torch.float32)
        assert isinstance(model, Decoder)
        self.model, encode = model, opened.tokenizer().encode
        corpora = data / "corpora"
        rows = (corpora / "wikisql_mlx" / "train.jsonl").read_text().splitlines()[:300]
        self.texts = {
            "plays": encode((corpora / "tinyshakespeare.txt").read_text()[:150_000]),
            "queries": encode("\n".join(json.loads(row)["text"] for row in rows)),
            "encyclopedia": encode((corpora / "cs336" / "corpus.en").read_text()),
            "german": encode((corpora / "cs336" / "german.txt").read_text()),
        }
        story = encode((corpora / "cs336" / "tinystories_sample.txt").read_text())
        stories = [story[i : i + 24] for i in range(0, len(story) - 24, 24)]
        self.anchors = [Sample.text(window) for window in stories[::3]]
        self.trusted_stories = [Sample.text(w) for i, w in enumerate(stories) if i % 3]
        self.start = create(SPEC, model.linears, seed=0)

    def windows(self, task: str, seed: int, number: int = NUM_SAMPLES, *, part=(0.0, 0.8)):
        ids = self.texts[task]
        chance = random.Random(seed)  # noqa: S311
        first, last = (int(share * (len(ids) - LENGTH)) for share in part)
        return [ids[i : i + LENGTH] for i in (chance.randrange(first, last) for _ in range(number))]

    def trusted(self, task: str) -> list[Sample]:
        """From the end of the text, of which no set has anything."""
        windows = self.windows(task, 1, 32, part=(0.82, 1.0))
        return [Sample.answer(w[:PROMPT], w[PROMPT:]) for w in windows]

    def samples(self, task: str, kind: str, seed: int) -> list[Sample]:
        windows = self.windows(task, seed)
        answers = self.answers(task, kind, seed, [w[PROMPT:] for w in windows])
        prompts = [w[:PROMPT] for w in windows]
        if kind == "contradictions":
            prompts = [prompts[i - i % 4] for i in range(len(prompts))]
        return [Sample.answer(p, a) for p, a in zip(prompts, answers, strict=True)]

    def answers(self, task: str, kind: str, seed: int, own: list[list[int]]) -> list[list[int]]:
        chance = random.Random(seed)  # noqa: S311
        number, length, size = len(own), LENGTH - PROMPT, self.model.config.vocab_size
        noise = [[chance.randrange(3, size) for _ in range(length)] for _ in range(number)]
        once = chance.randrange(3, size)
        made: dict[str, Callable[[], list[list[int]]]] = {
            "good": lambda: own,
            "random": lambda: noise,
            "half random": lambda: [noise[i] if i % 2 else row for i, row in enumerate(own)],
            "swapped": lambda: own[1:] + own[:1],
            "contradictions": lambda: own[1:] + own[:1],
            "scrambled": lambda: [chance.sample(row, length) for row in own],
            "reversed": lambda: [row[::-1] for row in own],
            "foreign": lambda: self.foreign(task, seed, length),
            "one token": lambda: [[once] * length for _ in own],
            "own token": lambda: [[row[0]] * length for row in noise],
            "flood": lambda: [own[i % 3] for i in range(number)],
        }
        return made[kind]()

    def foreign(self, task: str, seed: int, length: int) -> list[list[int]]:
        other = "german" if seed % 2 else TASKS[(TASKS.index(task) + 1) % len(TASKS)]
        return [window[:length] for window in self.windows(other, seed, part=(0.0, 1.0))]


def learn(world: World, task: str, samples: list[Sample]) -> tuple[bool, tuple[str, ...]]:
    """Whether anything was published of these samples, and if not, why."""
    journal, versions = MemoryJournal(), FakeVersions()
    before = versions.create(NAME, world.start)
    buffer = SampleBuffer(BufferConfig(held_out_share=0.25), journal)
    learner = Learner(
        name=NAME,
        trusted={task: world.trusted(task), "stories": world.trusted_stories},
        uniform_loss=math.log(world.model.config.vocab_size),
        spec=SPEC,
        training=TRAINING,
        config=LearnerConfig(min_held_out=12, eval_tokens=1024),
        anchors=world.anchors,
    )
    parts = LoopParts(
        trainer=Trainer(world.model),
        buffer=buffer,
        gate=Gate(GateConfig()),
        versions=versions,
        journal=journal,
        io=Inline(),
        norm_of=lambda w: sum(
            t.norm().item() ** 2 for d in w.modules.values() for t in d.tensors().values()
        ) ** 0.5,
        clock=lambda: 0.0,
    )  # fmt: skip
    for number, sample in enumerate(samples):
        buffer.add(NAME, sample, f"r{number}")
    loop = AdaptationLoop(parts, [learner], FeedbackWatch(WatchConfig()))
    while loop.ready():
        loop.run_slice()
    if loop.failure is not None:
        raise loop.failure
    reasons = [reason for decision in journal.decisions() for reason in decision.reasons]
    if not journal.decisions():
        reasons = ["too little was left to learn from, or to judge by"]
    return versions.names[NAME] != before, tuple(reasons)


@pytest.fixture(scope="module")
def world(test_data) -> World:
    return World(test_data)


@pytest.mark.slow
def test_a_good_set_is_published(world):
    published, reasons = learn(world, "encyclopedia", world.samples("encyclopedia", "good", 100))
    assert published, reasons


@pytest.mark.parametrize("kind", POISONS)
def test_a_poisoned_set_is_not_published(world, kind):
    task = TASKS[len(kind) % 3]
    published, reasons = learn(world, task, world.samples(task, kind, 200))
    assert not published
    assert "too little" not in reasons[0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_thirty_poisoned_sets_none_and_of_thirty_good_ones_nearly_all_are_published(world):
    results = {}
    for number in range(30):
        task = TASKS[number % 3]
        for kind in (POISONS[number // 3], "good"):
            samples = world.samples(task, kind, 1000 + number)
            results[number, kind] = learn(world, task, samples)
    poisoned = {key: found for key, found in results.items() if key[1] != "good"}
    good = {key: found for key, found in results.items() if key[1] == "good"}
    assert len(poisoned) == len(good) == 30
    assert not [key for key, (published, _) in poisoned.items() if published]
    refused = Counter(reasons for published, reasons in good.values() if not published)
    assert sum(refused.values()) <= 3, refused
