"""How an adapter becomes a learner: its shape, its training, its policy, what it is judged by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyprstream.errors import InvalidDatasetError
from hyprstream.refs import adapter_name
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.anchors import ANCHOR_SEED, TEXT_TOKENS, anchors_for, num_sheets
from hyprstream.runtime.exchange import spec_of
from hyprstream.runtime.learners import Learner, LearnerConfig
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.lesson import spread
from hyprstream.runtime.model import Model
from hyprstream.runtime.policy import Policies
from hyprstream.runtime.recorded_training import recorded_training
from hyprstream.runtime.training_data import maker_of
from hyprstream.store.manifest import check_base
from hyprstream.train.config import TrainConfig
from hyprstream.train.dataset import DataConfig, read_dataset
from hyprstream.train.sample import Sample

UNRELATED = "unrelated text"
"""The trusted set that every adapter has."""

_UNRELATED_SEED = ANCHOR_SEED + 1
_NUM_UNRELATED = 32

# How many steps there will be is not known beforehand: the rate is constant. It is twice that of
# the foreground, as time is scarce beside serving: of 128 corrections SmolLM2 learns as much in
# two passes as in three to four. The pull is a strong one: of 113 samples of plays, a model of
# stories learnt 1.49 nats a token with it instead of 1.56 with a pull of 1, and lost 0.06 instead
# of 0.10 on unrelated text.
_USUAL = {"learning_rate": 1e-3, "base_pull": 4.0}

MAX_TRUSTED = 64
"""Samples of a trusted set that are measured for each version: those of a larger one, evenly."""


def learner_of(
    adapters: Adapters,
    name: str,
    model: Model,
    config: LearningConfig,
    *,
    anchors: Path | None = None,
    training: Mapping[str, Any] | None = None,
) -> Learner:
    """Make a learner of an adapter, as its newest version and its policy say.

    It is held where the base model is by text of the model's own, and judged by other such
    text, so that learning is safe before anybody has named a trusted set.

    Args:
        adapters: The store.
        name: The adapter.
        model: What it is for.
        config: What holds for all adapters.
        anchors: Where texts of base models are kept; None: they are made each time.
        training: Fields of `TrainConfig` instead of what was recorded with the adapter.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        IncompatibleAdapterError: It was made for another model.
        InvalidDatasetError: A trusted set has too few samples of this model.
        InvalidSettingsError: A setting of training is out of range.
        CorruptError: The policy cannot be read.
    """
    known = adapter_name(name)
    manifest = adapters.manifest(adapters.resolve(known))
    check_base(manifest, model.fingerprint, force=False)
    settings = {**_USUAL, **recorded_training(manifest), **(training or {})}
    usual = TrainConfig(**dict[str, Any](settings))
    longest = config.buffer.max_sample_tokens
    policies = Policies(adapters)
    trusted = _trusted(policies, known, model, config)  # before text is written for a while
    return Learner(
        name=known,
        trusted={UNRELATED: _unrelated(model, anchors), **trusted},
        uniform_loss=math.log(model.info.vocab_size),
        # Dropout would hide other inputs each time that a piece of a pass is computed.
        spec=replace(spec_of(manifest.spec), dropout=0.0),
        # Memory is for requests; what 2048 tokens keep for the way back may fill gigabytes.
        training=replace(usual, batch_tokens=max(usual.batch_tokens, longest), recompute=True),
        config=replace(config.learner, budget=policies.of(known).budget(config.learner.budget)),
        anchors=_anchors(model, anchors, config.learner) if usual.base_pull else [],
    )


def _anchors(model: Model, folder: Path | None, config: LearnerConfig) -> list[Sample]:
    """Return as many texts of the base model's own as hold the longest lesson."""
    num_steps = config.epochs * config.max_samples / config.samples_per_step
    num_tokens = round(num_steps * config.anchors_per_step * TEXT_TOKENS)
    return list(anchors_for(model, folder, sheets=num_sheets(num_tokens)).pulled)


def _unrelated(model: Model, folder: Path | None) -> list[Sample]:
    """Return what the base model says when left to itself; nothing of it is ever pulled on."""
    texts = anchors_for(model, folder, seed=_UNRELATED_SEED)
    return [*texts.held_out, *texts.pulled][:_NUM_UNRELATED]


def _trusted(
    policies: Policies, name: str, model: Model, config: LearningConfig
) -> dict[str, list[Sample]]:
    longest = min(model.context_length, config.buffer.max_sample_tokens)
    maker = maker_of(model, longest)
    found = {}
    for trusted in policies.trusted(name):
        with policies.unpacked(name, trusted) as file:
            samples = read_dataset([file], maker, DataConfig(held_out_share=0)).trained.samples
        if len(samples) < config.gate.min_trusted:
            raise InvalidDatasetError(
                f"the trusted set {trusted} of {name}",
                f"it has {len(samples)} samples of up to {longest} tokens, "
                f"{config.gate.min_trusted} are needed",
            )
        found[trusted] = list(evenly(samples, MAX_TRUSTED))
    return found


def evenly(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    """Choose so many samples, spread over all of them."""
    return [samples[place] for place in spread(len(samples), most)]
