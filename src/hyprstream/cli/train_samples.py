"""`hyprstream lora train sample`, and `start` without files: what people send is learnt."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from hyprstream.cli.options import (
    AdapterNameArgument,
    BaseModelOption,
    FormatOption,
    LoadOptions,
    grouped,
)
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import (
    Adapters,
    Context,
    Decision,
    SampleTraining,
    Sent,
    Session,
    Settings,
    load_base,
    session_of,
)
from hyprstream.cli.stopping import Stopping
from hyprstream.cli.train_options import DataFormat
from hyprstream.errors import ConflictError, InvalidRequestError, UnavailableError

_MAX_STDIN_BYTES = 64 << 20


@grouped
def sample(
    ctx: Context,
    *,
    name: AdapterNameArgument,
    prompt: Annotated[
        str | None, typer.Option("--input", metavar="TEXT", help="What is asked.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--output", metavar="TEXT", help="What is to be answered.")
    ] = None,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="System message before --input.")
    ] = "",
    input_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Records: JSON lines, Parquet or text; repeatable. - reads JSON lines from stdin.",
        ),
    ] = None,
    data_format: Annotated[
        DataFormat | None,
        typer.Option(help="Form of the records. Without it: what the keys of each show."),
    ] = None,
    base_model: BaseModelOption = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Send samples that an adapter is to learn from; they are on the disk when this returns.

    A fifth of the prompts is held out to judge by. What was sent before is not kept again.
    """
    from hyprstream.runtime import (
        conversation,
        load_settings,
        open_adapters,
        sample_maker,
        samples_of_files,
        send_samples,
    )

    output, settings = session_of(ctx).output, load_settings()
    _check_given(prompt, answer, system, input_file)
    with open_adapters(settings) as adapters, _files(input_file or []) as files:
        record = conversation(prompt or "", answer or "", system=system) if not files else None
        maker = sample_maker(adapters, name, settings, base_model)
        if record is None:
            samples = samples_of_files(files, data_format, maker)
        else:
            samples = maker.samples(record(maker))
        sent = send_samples(adapters, name, settings, samples)
    _say_sent(output, name, sent, settings, format)
    num_more = len(samples) - sum(sent.counts.values()) + sent.counts.get("full", 0)
    if num_more:
        raise UnavailableError(
            f"there is no room for {num_more} of {len(samples)} samples: "
            f"{sent.num_waiting} of {name} wait already",
            hint=f"`hyprstream lora train start {name}` learns from them; then send the rest.",
        )


def start_from_samples(
    session: Session,
    name: str,
    base_model: str | None,
    loading: LoadOptions,
    given: Mapping[str, Any],
    epochs: float | None,
    *,
    retry: bool,
) -> None:
    """Let an adapter learn from the samples that wait, and print the version that serves then.

    Args:
        session: Of the command.
        name: The adapter.
        base_model: The model; None takes the one that it was made for.
        loading: How to load it.
        given: Fields of `TrainConfig`.
        epochs: How often a sample is learnt from; None takes the setting.
        retry: Learn again from the samples of the version that was rejected last.
    """
    from dataclasses import replace

    from hyprstream.runtime import (
        SampleTraining,
        learner_of,
        load_settings,
        open_adapters,
        retry_samples,
    )

    output, settings = session.output, load_settings()
    with open_adapters(settings) as adapters:
        if retry:
            output.done(f"{retry_samples(adapters, name, settings)} samples wait again")
        _check_shortage(adapters, name, settings)  # before a model is loaded
        model = load_base(session, adapters, name, base_model, loading)
        learner = learner_of(
            adapters,
            name,
            model,
            settings.train,
            anchors=settings.anchors_folder,
            training=given,
        )
        if epochs is not None:
            learner = replace(learner, config=replace(learner.config, epochs=epochs))
        with SampleTraining(adapters, model, learner, settings) as training:
            is_over = _learn(output, training)
            decisions = training.decisions
        for decision in decisions:
            say_decision(output, decision)
        if not is_over:
            output.hint(f"The samples wait: `hyprstream lora train start {name}` begins again.")
            raise KeyboardInterrupt
        made = [decision for decision in decisions if decision.action in ("published", "canary")]
        if made:
            _say_made(output, name, made[-1])


def _say_made(output: Output, name: str, decision: Decision) -> None:
    """Print the newest version, and who is answered by it."""
    assert decision.version is not None
    output.text(f"{name}@{decision.version[:12]}\n")
    if decision.action == "canary":
        output.hint(
            f"A server answers {decision.numbers['share']:.3g} of the requests with it; "
            f"`hyprstream lora promote {name}:canary` lets it answer all."
        )


def say_decision(output: Output, decision: Decision) -> None:
    """Tell a decision of the gate with its numbers."""
    numbers = decision.numbers
    output.done(f"{decision.action}: {told(numbers)}" if numbers else decision.action)
    for reason in decision.reasons:
        output.warn(reason)


def told(numbers: Mapping[str, float]) -> str:
    """Say what a decision looked at, shortly."""
    parts = []
    if "samples" in numbers:
        parts.append(f"{numbers['samples']:.0f} samples, {numbers.get('suspects', 0):.0f} suspect")
    if "steps" in numbers:
        parts.append(f"{numbers['steps']:.0f} steps")
    if "held_out_loss" in numbers:
        parts.append(
            f"held-out loss {numbers['parent_held_out_loss']:.4f} -> "
            f"{numbers['held_out_loss']:.4f} (at most {numbers['held_out_high']:+.4f})"
        )
    for key, change in numbers.items():
        if key.startswith("trusted/") and not key.endswith(("_high", "_total")):
            high = numbers[f"{key}_high"]
            parts.append(f"{key.removeprefix('trusted/')} {change:+.4f} (at most {high:+.4f})")
    if "share" in numbers:
        parts.append(f"{numbers['share']:.3g} of the requests")
    if "answers" in numbers:
        parts.append(f"{numbers['answers']:.0f} answers")
    if "bad" in numbers:
        parts.append(f"{numbers['bad']:.0f} disliked, {numbers['good']:.0f} liked")
    return "; ".join(parts)


def _learn(output: Output, training: SampleTraining) -> bool:
    """Make versions, showing how far each is; return whether nothing is left to learn."""
    with Stopping() as stopping, output.lessons() as shown:
        for progress in training.steps():
            shown.show(progress)
            if stopping.is_wanted or training.is_stop_wanted:
                return False
    return True


def _check_shortage(adapters: Adapters, name: str, settings: Settings) -> None:
    """Refuse to begin where too little waits.

    Raises:
        InvalidRequestError: Too few samples wait, or the budget of the day is spent.
        ConflictError: A canary is out.
    """
    from hyprstream.runtime import learning_status

    (status,) = learning_status(adapters, settings, name)
    waits = f"of {name}, {status.samples.waiting} samples wait and {status.samples.held_out}"
    if status.waits_for_canary:
        raise ConflictError(
            f"of {name}, a canary is out: what was learnt now would begin with its parent",
            hint=f"Let it answer all with `hyprstream lora promote {name}:canary`, or take it back "
            f"with `hyprstream lora tag {name} canary --delete`.",
        )
    if not status.has_enough:
        raise InvalidRequestError(
            f"{waits} are held out; {status.min_waiting} and {status.min_held_out} are needed",
            hint=f"Send more with `hyprstream lora train sample {name}`, or learn from files "
            "with --data.",
        )
    if not status.spent.is_within(status.budget):
        raise InvalidRequestError(
            f"{name} has spent today's budget of learning: {status.spent.steps} of "
            f"{status.budget.steps} steps, {status.spent.seconds:.0f} of "
            f"{status.budget.seconds:.0f} seconds, {status.spent.tokens} of "
            f"{status.budget.tokens} tokens",
            hint=f"Wait for tomorrow (UTC), or raise it: `hyprstream lora train policy {name} "
            "--steps-per-day N`.",
        )


def _check_given(
    prompt: str | None, answer: str | None, system: str, files: list[Path] | None
) -> None:
    if files:
        if prompt is not None or answer is not None or system:
            raise InvalidRequestError(
                "--input-file holds whole samples", hint="Leave out --input, --output and --system."
            )
    elif prompt is None or answer is None:
        raise InvalidRequestError(
            "a sample is what is asked and what is to be answered",
            hint="Give --input and --output, or --input-file.",
        )


@contextmanager
def _files(files: list[Path]) -> Iterator[list[Path]]:
    """Give files to read, what is piped in among them."""
    if Path("-") not in files:
        yield files
        return
    data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
    if len(data) > _MAX_STDIN_BYTES:
        raise InvalidRequestError(
            f"more than {_MAX_STDIN_BYTES} bytes come from stdin", hint="Send them in parts."
        )
    with TemporaryDirectory(prefix="hyprstream-") as folder:
        piped = Path(folder) / "stdin.jsonl"
        piped.write_bytes(data)
        yield [piped if file == Path("-") else file for file in files]


def _say_sent(
    output: Output,
    name: str,
    sent: Sent,
    settings: Settings,
    format: Format,  # noqa: A002
) -> None:
    config = settings.train.learner
    record = {
        "adapter": name,
        "source": sent.source,
        **{became: sent.counts.get(became, 0) for became in ("waiting", "held_out", "duplicate")},
        **{became: sent.counts.get(became, 0) for became in ("too_long", "full")},
        "num_waiting": sent.num_waiting,
        "num_held_out": sent.num_held_out,
    }
    shown = {
        "kept": f"{sent.num_kept}, of which {sent.counts.get('held_out', 0)} are held out",
        "waiting": f"{sent.num_waiting}; {config.min_waiting} make a version",
        "held out": f"{sent.num_held_out}; {config.min_held_out} are needed to judge one",
    }
    output.record(record, format, shown=shown)
    for became, what in (
        ("duplicate", "was there already"),
        ("too_long", f"is longer than {settings.train.buffer.max_sample_tokens} tokens"),
    ):
        if number := sent.counts.get(became, 0):  # type: ignore[call-overload]  # one of them
            output.warn(f"{number} of the samples: what it says {what}")
    is_enough = sent.num_waiting >= config.min_waiting and sent.num_held_out >= config.min_held_out
    if is_enough:
        output.hint(f"`hyprstream lora train start {name}` learns from them.")
