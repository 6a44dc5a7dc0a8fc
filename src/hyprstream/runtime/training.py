"""Training in the foreground: a model, a store and a trainer, joined for one run.

    with Training(adapters, "poet", model, settings.training_folder) as training:
        run = training.begin(plan)
        for progress in run.steps():
            ...
        done = finish_training(run)

A run is saved now and then in a folder of its own; `Training.resume` goes on from there, to
the same bits. The serving loop trains in slices between requests instead.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hyprstream.errors import ConflictError, NotFoundError
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.weights import LoraWeights
from hyprstream.runtime.adapted import LoadedAdapter, load_adapter
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.anchors import Anchors, Tell, anchors_for, num_sheets
from hyprstream.runtime.exchange import spec_of
from hyprstream.runtime.model import Model
from hyprstream.runtime.recorded_training import recorded_training
from hyprstream.runtime.training_data import Material, read_material
from hyprstream.runtime.training_place import TrainingPlace, Working
from hyprstream.runtime.training_records import Drift, TrainingPlan
from hyprstream.train.config import TrainConfig
from hyprstream.train.evaluate import Evaluation, SampleScore
from hyprstream.train.lessons import lessons_of, preferences_of
from hyprstream.train.resume import load_run, remove_run, save_run, saved_settings
from hyprstream.train.run import Lessons, Run, RunConfig, Saved, TrainingProgress
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

_TELL_EVERY_S = 0.5  # how far a run is, for other processes


class TrainingRun:
    """One run, from its beginning, or from where it was saved.

    Attributes:
        adapters: Where the adapter is.
        name: What it is called.
        model: What it is trained on.
        plan: What was asked for.
        parent: The version that the run began with.
        material: What is learnt, and what is judged by.
        config: All settings of training.
        anchors: Text on which the adapter is held where the base model is; None: it is not.
        length: All settings of the run.
        run: The run itself.
        warning: What to tell the user; empty if there is nothing.
    """

    def __init__(
        self,
        training: "Training",
        plan: TrainingPlan,
        parent: LoadedAdapter,
        saved: Saved | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.adapters, self.name = training.adapters, training.name
        self.model, self.plan = training.model, plan
        self.parent, self.start, self.warning = parent.version, parent.weights, parent.warning
        self.place, self._began = training.place, time.time()
        self.material: Material = read_material(self.model, plan)
        self.config, self.length = _completed(plan, self.material)
        is_pulled = self.config.base_pull and self.material.method == "answers"
        self.anchors = self._text_to_hold(training) if is_pulled else None
        self._check_unchanged(settings or self._settings())
        self.trainer = Trainer(self.model.decoder)
        spec = spec_of(self.adapters.manifest(self.parent).spec)
        weights = self.start if saved is None else saved.current
        self.trainer.open(self.name, weights, spec=spec, config=self.config)
        self.run = Run(self.trainer, self.name, self._lessons(), self.length, saved=saved)

    def steps(self) -> Iterator[TrainingProgress]:
        """Take the steps that are left, and save now and then.

        Raises:
            HyprstreamError: A step, or the disk, failed; what was saved before is still there.
        """
        told = 0.0
        for progress in self.run.steps():
            if self.run.is_due or self.run.is_over:
                self.save()
            if time.monotonic() - told >= _TELL_EVERY_S:
                self._tell()
                told = time.monotonic()
            yield progress

    @property
    def is_stop_wanted(self) -> bool:
        """Tell whether somebody asked for an end after the current step."""
        return self.place.is_stop_wanted

    def _text_to_hold(self, training: "Training") -> Anchors:
        num_tokens = self.length.num_steps * self.config.accumulation * self.config.anchor_tokens
        sheets = num_sheets(num_tokens)
        anchors = anchors_for(self.model, training.anchors, sheets=sheets, tell=training.tell)
        return anchors.within(min(self.config.batch_tokens, self.config.anchor_tokens))

    def _tell(self) -> None:
        curve = self.run.curve
        looks = [point.held_out_loss for point in curve if point.held_out_loss is not None]
        self.place.tell(
            Working(
                pid=os.getpid(),
                source="data",
                began=self._began,
                phase="learning",
                step=curve[-1].step,
                num_steps=self.length.num_steps,
                loss=curve[-1].loss,
                held_out_loss=looks[-1] if looks else None,
                curve=tuple((point.step, point.loss, point.held_out_loss) for point in curve),
            )
        )

    def save(self) -> None:
        """Save the run; only between two steps.

        Raises:
            StorageFullError: The disk is full; what was saved before is still there.
        """
        save_run(self.place.folder, self.run.saved(), self._settings())

    def discard(self) -> None:
        """Forget what was saved; the run cannot be resumed then."""
        remove_run(self.place.folder)

    def scores(self, weights: LoraWeights | None) -> list[SampleScore]:
        """Measure an adapter on the held-out answers."""
        return self._scores(weights, self.material.dataset.held_out.samples)

    def drift(self, weights: LoraWeights) -> Drift | None:
        """Measure what an adapter costs on text that it was not held by; None without anchors."""
        if self.anchors is None:
            return None
        ours, base = (
            Evaluation.of(self._scores(of, self.anchors.held_out)).loss for of in (weights, None)
        )
        return Drift(loss=ours, base_loss=base)

    def _scores(self, weights: LoraWeights | None, samples: Sequence[Sample]) -> list[SampleScore]:
        return self.trainer.score(weights, samples, batch_tokens=self.config.batch_tokens)

    def _settings(self) -> dict[str, Any]:
        return {
            "plan": self.plan.plain(),
            "parent": self.parent,
            "data": self.material.fingerprint,
            "anchors": "" if self.anchors is None else self.anchors.fingerprint,
            "model": str(self.model.fingerprint),
        }

    def _check_unchanged(self, settings: Mapping[str, Any]) -> None:
        """Refuse to go on with other samples than those that the run began with."""
        found = self._settings()
        for key, what in (("data", "data"), ("anchors", "text of the base model")):
            if settings[key] != found[key]:
                raise ConflictError(
                    f"the {what} of adapter {self.name} is no longer what the training began with",
                    hint="Bring it back, or discard what was saved and begin again.",
                )

    def _lessons(self) -> Lessons:
        trained, held_out = self.material.dataset.trained, self.material.dataset.held_out
        if self.material.method == "answers":
            control_ids = self.model.tokenizer.control_ids
            order = self.material.order(self.plan, control_ids, self._base_losses)
            answers = trained.samples, held_out.samples
            anchors = () if self.anchors is None else self.anchors.pulled
            return lessons_of(self.trainer, self.name, *answers, order=order, anchors=anchors)
        prefer = partial(preferences_of, self.trainer, self.name, reference=self.start)
        if self.material.method == "pairs":
            return prefer(trained.pairs, held_out.pairs)
        return prefer(trained.judged, held_out.judged)

    def _base_losses(self, samples: Sequence[Sample]) -> list[float]:
        return [score.loss for score in self._scores(None, samples)]


def _completed(plan: TrainingPlan, material: Material) -> tuple[TrainConfig, RunConfig]:
    """Return all settings of a run; where the plan is silent, as the data asks for."""
    size = material.batch_tokens(TrainConfig().batch_tokens)
    plan = replace(plan, train={"batch_tokens": size, **plan.train})
    num_steps = plan.num_steps(lambda epochs: material.num_steps(plan.completed(2)[0], epochs))
    return plan.completed(num_steps)


class Training:
    """The place where an adapter is trained, held against other processes in a `with` block.

    Attributes:
        adapters: Where the adapter is.
        name: What it is called.
        model: What it is trained on.
        folder: Where the run is saved.
        anchors: Where texts of base models are kept.
        tell: Called while they are made; None at first.

    Args:
        adapters: Where the adapter is.
        name: What it is called.
        model: The model that it was made for.
        folder: Of all runs.
        force: Warn instead of refusing a model that it was not made for.
        anchors: Where texts of base models are kept; None: they are made for each run.

    Raises:
        InvalidReferenceError: It is no name.
    """

    def __init__(
        self,
        adapters: Adapters,
        name: str,
        model: Model,
        folder: Path,
        *,
        force: bool = False,
        anchors: Path | None = None,
    ) -> None:
        self.adapters = adapters
        self.place = TrainingPlace(folder, name)
        self.name, self.folder = self.place.name, self.place.folder
        self.model = model
        self.anchors = anchors
        self.tell: Tell | None = None
        self._force = force
        self._held = ExitStack()

    def __enter__(self) -> Self:
        """Keep others out.

        Raises:
            CacheBusyError: Another process trains the adapter.
        """
        self._held.enter_context(self.place.hold())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def begin(self, plan: TrainingPlan) -> TrainingRun:
        """Begin a run from the version that the name points at.

        Raises:
            AdapterNotFoundError: There is no adapter of that name.
            ConflictError: There is a run that is not over.
            HyprstreamError: The data, or the adapter, cannot be used.
        """
        if saved_settings(self.folder) is not None:
            raise ConflictError(
                f"the training of {self.name} was interrupted and can go on",
                hint="Resume it, or discard it first.",
            )
        parent = self._loaded(self.name)
        settings = recorded_training(self.adapters.manifest(parent.version))
        plan = replace(plan, train={**settings, **plan.train})
        return TrainingRun(self, plan, parent)

    def resume(self) -> TrainingRun:
        """Go on with the run that was saved.

        Raises:
            NotFoundError: There is none.
            ConflictError: The data or the model is another one now.
            CorruptError: What was saved is damaged.
        """
        settings = saved_settings(self.folder)
        if settings is None:
            raise NotFoundError(f"no training of {self.name} was interrupted", hint="Start one.")
        if settings["model"] != str(self.model.fingerprint):
            raise ConflictError(
                f"the training began on {settings['model']}, this is {self.model.fingerprint}",
                hint="Use the same model.",
            )
        parent = self._loaded(f"{self.name}@{settings['parent']}")
        saved = load_run(self.folder, BaseLayers(self.model.decoder.weights))
        plan = TrainingPlan.of_plain(settings["plan"])
        return TrainingRun(self, plan, parent, saved, settings)

    def discard(self) -> None:
        """Forget the run that was saved, if there is one."""
        remove_run(self.folder)

    def _loaded(self, ref: str) -> LoadedAdapter:
        return load_adapter(self.adapters, ref, self.model, force=self._force)
