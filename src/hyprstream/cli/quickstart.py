"""`hyprstream quickstart`: a model is taught what nobody can know, judged, shrunk, rolled back.

Everything in it is what other commands do too: `lora create`, `lora train start`,
`lora compress`, `lora rollback` and `chat --adapter`.
"""

import json
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer

from hyprstream.cli.invented import Fact, draw_facts
from hyprstream.cli.options import LoadOptions
from hyprstream.cli.output import Output
from hyprstream.cli.session import (
    Adapters,
    Completion,
    Context,
    Model,
    Settings,
    load_model,
    session_of,
)
from hyprstream.cli.text import in_bytes, in_millions

NAME = "quickstart"
_BY = "hyprstream quickstart"
_UNRELATED = "What is the capital of Japan?"
_MAX_TOKENS = 40
_FLOAT32_BYTES = 4
_LEARNING_RATE = 1e-3
_NUM_LEARNT, _NUM_JUDGED = 6, 4  # ways to ask for each fact
_SMALL = {"batch_tokens": 256, "anchor_tokens": 192}  # steps of seconds


def quickstart(
    ctx: Context,
    facts: Annotated[int, typer.Option(min=3, max=50, help="How many facts to teach.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Optimizer steps.")] = 20,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Decides which facts. Without it: others every time.", show_default=False
        ),
    ] = None,
) -> None:
    """Teach the default model facts that were made up just now, and take them back again.

    The adapter stays, under the name quickstart; another run begins anew.
    """
    from hyprstream.runtime import load_settings, open_adapters

    began = time.monotonic()
    session = session_of(ctx)
    output = session.output
    # Quantised weights are dequantised in every pass; with them a step takes twice as long.
    model = load_model(session, None, LoadOptions(dtype="float32"))
    output.done(
        f"{model.info.name}: {in_millions(model.info.num_parameters)} parameters, "
        f"{in_bytes(model.info.size_bytes)}, loaded in {model.load_s:.1f} s as float32"
    )
    seed = secrets.randbits(32) if seed is None else seed
    settings = load_settings()
    with open_adapters(settings) as adapters:
        story = _Story(output, adapters, model, draw_facts(facts, seed))
        before = story.ask_at_first()
        if story.teach(settings, steps):
            story.ask_again(before)
            story.shrink()
            story.roll_back(before)
    output.done("")
    output.done(f"That took {time.monotonic() - began:.0f} s. Next:")
    output.done(f"  hyprstream chat --adapter {NAME}                 talk with what has learnt")
    output.done(f"  hyprstream lora history {NAME}                   what happened to it")
    output.done("  hyprstream lora train start NAME --data FILE     teach one of your own")


class _Story:
    """What is told, chapter by chapter.

    Args:
        output: Where.
        adapters: Where the adapter is kept.
        model: The base model.
        facts: What it is taught.
    """

    def __init__(self, output: Output, adapters: Adapters, model: Model, facts: list[Fact]) -> None:
        self._output = output
        self._adapters = adapters
        self._model = model
        self._facts = facts

    def ask_at_first(self) -> list[Completion]:
        """Ask before anything was learnt."""
        self._title(f"1. {len(self._facts)} facts, made up just now. The model cannot know them.")
        answers = self._ask(self._model, show_right=True)
        self._title("   And something that it does know:")
        return [*answers, self._answer(self._model, _UNRELATED)]

    def teach(self, settings: Settings, num_steps: int) -> bool:
        """Train an adapter, let the gate decide, and return whether it may serve."""
        from hyprstream.runtime import Note, Training, TrainingPlan, finish_training

        self._title(
            f"2. An adapter learns them, each asked in {_NUM_LEARNT} ways, and is judged by "
            f"{_NUM_JUDGED} others."
        )
        self._begin_anew()
        folder = settings.home.expanduser() / NAME
        plan = TrainingPlan(
            data=(self._write(folder, "train", slice(_NUM_LEARNT)),),
            held_out=(self._write(folder, "valid", slice(_NUM_LEARNT, _NUM_LEARNT + _NUM_JUDGED)),),
            train={"learning_rate": _LEARNING_RATE, **_SMALL},
            run={"num_steps": num_steps, "evaluate_every": max(1, num_steps // 4)},
        )
        with Training(
            self._adapters,
            NAME,
            self._model,
            settings.training_folder,
            anchors=settings.anchors_folder,
        ) as training:
            training.discard()
            run = training.begin(plan)
            with self._output.steps(num_steps) as shown:
                for progress in run.steps():
                    shown.step(progress)
            done = finish_training(run, "better", Note(by=_BY))
        self._output.done(f"The gate: {done.why}.")
        if done.is_promoted:
            self._output.done(f"It may serve: {NAME} is version {str(done.version)[:12]} now.")
        else:
            self._output.warn(f"it may not serve: {NAME} stays as it was")
        return done.is_promoted

    def ask_again(self, before: list[Completion]) -> None:
        """Ask the same again, in words that it has not seen."""
        self._title("3. The same questions, in words that it has not seen.")
        learnt = self._adapted()
        self._ask(learnt, show_right=True)
        self._title("   And the one about something else:")
        again = self._answer(learnt, _UNRELATED)
        same = "as before" if again.text == before[-1].text else "not as before"
        self._output.done(f"({same})")

    def shrink(self) -> None:
        """Store the version in the learned code, and ask it."""
        self._title("4. Compressed, and asked once more.")
        manifest = self._adapters.manifest(self._adapters.resolve(NAME))
        done = self._adapters.compress(NAME, "neural", tag="small")
        small = self._adapters.manifest(done.version).payload.size_bytes
        as_floats = _FLOAT32_BYTES * done.report.num_values
        self._output.done(
            f"{in_bytes(as_floats)} as float32, {in_bytes(manifest.payload.size_bytes)} in "
            f"{manifest.codec}, {in_bytes(small)} in neural: {as_floats / small:.1f} times smaller"
        )
        self._ask(self._adapted(":small"), show_right=True)

    def roll_back(self, before: list[Completion]) -> None:
        """Take back what was learnt, compare every bit, and let it serve again."""
        from hyprstream.runtime import Note

        self._title("5. Rolled back.")
        learnt = self._adapters.resolve(NAME)
        first = self._adapters.rollback(NAME, Note(by=_BY), expected=learnt)
        model = self._adapted()
        questions = [*(fact.question for fact in self._facts), _UNRELATED]
        num_same = sum(
            self._generate(model, question).tokens == completion.tokens
            for question, completion in zip(questions, before, strict=True)
        )
        told = f"{num_same} of {len(before)} answers are the first ones again, bit by bit"
        if num_same == len(before):
            self._output.done(told + ": the tokens and their probabilities.")
        else:
            self._output.warn(told)
        self._adapters.move(NAME, learnt, expected=first, note=Note(by=_BY, why="taught again"))
        self._output.done(f"And forward again: {NAME} knows the facts.")

    def _write(self, folder: Path, name: str, which: slice) -> Path:
        """Write the facts, asked in some of their ways, as a file of JSON lines."""
        rows = [row for fact in self._facts for row in fact.records(fact.questions[which])]
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return file

    def _begin_anew(self) -> None:
        """Make the adapter, or let its name point at a fresh version."""
        from hyprstream.runtime import LoraSpec, Note, Recipe, commit_fresh, create_adapter

        recipe = Recipe(spec=LoraSpec(rank=16, alpha=32.0, targets=("all",)))
        note = Note(by=_BY, why="a fresh start")
        if NAME not in {adapter.name for adapter in self._adapters.list()}:
            create_adapter(self._adapters, NAME, self._model, recipe, note)
            return
        fresh = commit_fresh(self._adapters, self._model, recipe).version
        current = self._adapters.resolve(NAME)
        if current != fresh:
            self._adapters.move(NAME, fresh, expected=current, note=note)

    def _adapted(self, suffix: str = "") -> Model:
        from hyprstream.runtime import load_adapter

        loaded = load_adapter(self._adapters, NAME + suffix, self._model)
        return self._model.adapted(loaded.weights, f"{NAME}@{loaded.version[:12]}")

    def _ask(self, model: Model, *, show_right: bool) -> list[Completion]:
        answers = [self._answer(model, fact.question) for fact in self._facts]
        if show_right:
            right = sum(
                fact.is_told(answer.text) for fact, answer in zip(self._facts, answers, strict=True)
            )
            self._output.done(f"({right} of {len(answers)} right)")
        return answers

    def _answer(self, model: Model, question: str) -> Completion:
        self._output.done(f">>> {question}")
        completion = self._generate(model, question)
        self._output.text(completion.text + "\n")
        return completion

    def _generate(self, model: Model, question: str) -> Completion:
        # The most likely tokens, with what the model thinks of each: nothing is left to chance.
        messages = [{"role": "user", "content": question}]
        return model.chat(messages, temperature=0, max_tokens=_MAX_TOKENS, logprobs=0)

    def _title(self, text: str) -> None:
        self._output.done("")
        self._output.done(text)
