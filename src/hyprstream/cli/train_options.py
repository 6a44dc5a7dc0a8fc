"""The options of `hyprstream lora train start`, and the plan that they make.

None leaves what is usual, which the reference page of training lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyprstream.errors import InvalidSettingsError

if TYPE_CHECKING:
    from hyprstream.runtime import TrainingPlan
else:
    TrainingPlan = object

DataFormat = Literal["messages", "sharegpt", "alpaca", "completion", "preference", "text"]

_DATA, _TRAINING, _RUN = "Data", "Training", "Run"


def _option(panel: str, help: str, metavar: str | None = None, *names: str) -> Any:  # noqa: A002
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What is learnt, and what is judged by."""

    data: Annotated[
        list[Path] | None,
        _option(_DATA, "Records to learn: JSON lines, Parquet or text; repeatable.", "FILE"),
    ] = None
    data_format: Annotated[
        DataFormat | None,
        _option(_DATA, "Form of the records. Without it: what the keys of each show."),
    ] = None
    method: Annotated[
        Literal["answers", "pairs", "thumbs"] | None,
        _option(_DATA, "What to learn of data that holds several sorts of records."),
    ] = None
    held_out: Annotated[
        list[Path] | None,
        _option(_DATA, "Records to judge by, of which none is learnt; repeatable.", "FILE"),
    ] = None
    held_out_share: Annotated[
        float | None, _option(_DATA, "Share of prompts that are judged by and not learnt; 0.1.")
    ] = None
    too_long: Annotated[
        Literal["refuse", "skip", "cut"] | None,
        _option(_DATA, "What happens to samples longer than --max-tokens; skip."),
    ] = None
    max_tokens: Annotated[
        int | None, _option(_DATA, "Longest sample; the tokens of a batch.", "TOKENS")
    ] = None
    replay: Annotated[
        list[Path] | None,
        _option(_DATA, "Earlier records to mix in; repeatable.", "FILE"),
    ] = None
    replay_share: Annotated[
        float | None, _option(_DATA, "Share of samples that are earlier ones; 0.25.")
    ] = None
    augment: Annotated[
        int | None, _option(_DATA, "Changed copies of each record; 0.", "COPIES")
    ] = None
    rephrase: Annotated[
        float | None, _option(_DATA, "Chance that a copy's prompt is framed anew; 0.5.")
    ] = None
    casing: Annotated[
        float | None, _option(_DATA, "Chance that some of its words change their case; 0.25.")
    ] = None
    shuffling: Annotated[
        float | None, _option(_DATA, "Chance that some of its words change places; 0.")
    ] = None
    mix_context: Annotated[
        float | None, _option(_DATA, "Chance that an unrelated text stands before it; 0.")
    ] = None
    token_dropout: Annotated[
        float | None, _option(_DATA, "Share of a prompt's tokens left out each time; 0.")
    ] = None
    curriculum: Annotated[
        Literal["none", "length", "loss"] | None,
        _option(_DATA, "Easy samples first, by length or by the base model's loss; none."),
    ] = None
    pacing: Annotated[
        Literal["competence", "sorted"] | None,
        _option(_DATA, "How harder ones follow: more and more, or from easy to hard."),
    ] = None
    start_share: Annotated[
        float | None, _option(_DATA, "Share of the samples that competence begins with; 0.1.")
    ] = None
    curriculum_passes: Annotated[
        float | None, _option(_DATA, "Passes over the data until all take part; 1.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """One option for each field of `TrainConfig` that a person sets."""

    learning_rate: Annotated[
        float | None,
        _option(
            _TRAINING,
            "Highest rate; that of the adapter's spec, or 5e-4 of files, 1e-3 of samples.",
        ),
    ] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"] | None,
        _option(_TRAINING, "How the rate falls; cosine."),
    ] = None
    warmup_steps: Annotated[
        int | None, _option(_TRAINING, "Steps over which the rate rises; a tenth, at most 10.")
    ] = None
    final_share: Annotated[
        float | None, _option(_TRAINING, "Share of the rate that is left in the end; 0.1.")
    ] = None
    optimizer: Annotated[
        Literal["adamw", "muon"] | None, _option(_TRAINING, "adamw, or muon for whole matrices.")
    ] = None
    lora_plus_ratio: Annotated[
        float | None, _option(_TRAINING, "Rate of B over that of A (LoRA+); 1.")
    ] = None
    weight_decay: Annotated[float | None, _option(_TRAINING, "As in AdamW; 0.")] = None
    max_grad_norm: Annotated[
        float | None, _option(_TRAINING, "Longer gradients are scaled down to it; 1.")
    ] = None
    batch_tokens: Annotated[
        int | None,
        _option(_TRAINING, "Tokens computed at a time; a tenth of the data, to 2048.", "TOKENS"),
    ] = None
    accumulation: Annotated[int | None, _option(_TRAINING, "Batches in a step; 1.")] = None
    base_pull: Annotated[
        float | None,
        _option(_TRAINING, "Weight of the divergence from the base model; 1, 0 for none."),
    ] = None
    anchor_tokens: Annotated[
        int | None,
        _option(_TRAINING, "The base model's own text that a batch is held by; 256.", "TOKENS"),
    ] = None
    preference_beta: Annotated[
        float | None, _option(_TRAINING, "How far preferences may lead: less for more; 0.1.")
    ] = None
    recompute: Annotated[
        bool | None, _option(_TRAINING, "Less memory, more time.", None, "--recompute")
    ] = None
    regrow_every: Annotated[
        int | None, _option(_TRAINING, "Steps between moves of masks; 0: never.")
    ] = None
    regrow_fraction: Annotated[
        float | None, _option(_TRAINING, "Share of a mask that the first move gives up; 0.3.")
    ] = None
    seed: Annotated[
        int | None, _option(_TRAINING, "Decides all that is random; that of the adapter.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Return what was asked for, under the names of `TrainConfig`."""
        return _given(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How long, and when to look up."""

    epochs: Annotated[
        float | None, _option(_RUN, "Passes over the data; 3, or 240 steps if that is more.")
    ] = None
    steps: Annotated[int | None, _option(_RUN, "Optimizer steps, instead of passes.", "N")] = None
    evaluate_every: Annotated[
        int | None, _option(_RUN, "Steps between looks at held-out samples; 10.", "N")
    ] = None
    patience: Annotated[
        int | None, _option(_RUN, "Looks without a better one before it stops; 5. 0: never.")
    ] = None
    save_every: Annotated[int | None, _option(_RUN, "Steps between saves; 10.", "N")] = None


_AUGMENT: Mapping[str, str] = {
    "augment": "copies",
    "rephrase": "rephrase",
    "casing": "casing",
    "shuffling": "shuffling",
    "mix_context": "context",
    "token_dropout": "token_dropout",
}
_CURRICULUM: Mapping[str, str] = {
    "curriculum": "difficulty",
    "pacing": "pacing",
    "start_share": "start_share",
    "curriculum_passes": "passes",
    "replay_share": "replay_share",
}
_FILES: Mapping[str, str] = {
    "data_format": "form",
    "held_out_share": "held_out_share",
    "too_long": "too_long",
}
_REPLAY_SHARE = 0.25


def given_names(*groups: DataOptions | TrainOptions | RunOptions) -> list[str]:
    """Return the options that were given, as they are typed."""
    return [f"--{name.replace('_', '-')}" for group in groups for name in _given(group)]


def plan_of(data: DataOptions, train: TrainOptions, run: RunOptions) -> TrainingPlan:
    """Make the plan.

    Raises:
        InvalidSettingsError: A value is out of range, there is no data, or two options say
            what is judged by.
    """
    from hyprstream.runtime import AugmentConfig, CurriculumConfig, DataConfig, TrainingPlan

    given = _given(data)
    if "held_out" in given and "held_out_share" in given:
        raise InvalidSettingsError(
            "--held-out and --held-out-share exclude each other", hint="Leave out one of the two."
        )
    if "replay" in given:
        given.setdefault("replay_share", _REPLAY_SHARE)
    length = _given(run)
    if "steps" in length:
        length["num_steps"] = length.pop("steps")
    plan: dict[str, Any] = {n: given[n] for n in ("method", "max_tokens") if n in given}
    if "epochs" in length:
        plan["epochs"] = length.pop("epochs")
    return TrainingPlan(
        data=tuple(data.data or ()),
        held_out=tuple(data.held_out or ()),
        replay=tuple(data.replay or ()),
        data_config=DataConfig(**_renamed(given, _FILES)),
        augment=AugmentConfig(**_renamed(given, _AUGMENT)),
        curriculum=CurriculumConfig(**_renamed(given, _CURRICULUM)),
        train=train.given(),
        run=length,
        **plan,
    )


def _given(group: DataOptions | TrainOptions | RunOptions) -> dict[str, Any]:
    values = {field.name: getattr(group, field.name) for field in fields(group)}
    return {name: value for name, value in values.items() if value not in (None, [])}


def _renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {new: given[old] for old, new in names.items() if old in given}
