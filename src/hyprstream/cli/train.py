"""`hyprstream lora train`: adapters learn from files, in the foreground."""

import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Literal

import typer

from hyprstream.cli.curves import write_curves
from hyprstream.cli.options import (
    AdapterArgument,
    AdapterNameArgument,
    BaseModelOption,
    ForceOption,
    FormatOption,
    LoadOptions,
    WhyOption,
    grouped,
)
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import Context, TrainingRun, load_base, session_of
from hyprstream.cli.train_options import (
    DataFormat,
    DataOptions,
    RunOptions,
    TrainOptions,
    given_names,
    plan_of,
)
from hyprstream.errors import InvalidRequestError

BY = "hyprstream lora train"
"""Who moves names, in histories."""

_PROMOTIONS: Mapping[bool | None, Literal["better", "always", "never"]] = {
    None: "better",
    True: "always",
    False: "never",
}

app = typer.Typer(no_args_is_help=True, help="Train adapters, and measure them.")


@app.command()
@grouped
def start(
    ctx: Context,
    *,
    name: AdapterNameArgument,
    what: DataOptions,
    how: TrainOptions,
    long: RunOptions,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a training was interrupted.")
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Forget a training that was interrupted, and begin.")
    ] = False,
    promote: Annotated[
        bool | None,
        typer.Option(
            "--promote/--no-promote",
            help="Let the name point at the new version in any case, or in none. Without it: if "
            "held-out samples say that it is better, beyond chance.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the curves of losses as .svg or .png.", show_default=False
        ),
    ] = None,
    why: WhyOption = "",
    base_model: BaseModelOption = None,
    force: ForceOption = False,
    loading: LoadOptions,
) -> None:
    """Train an adapter on records, and print the reference of the version that comes of it.

    Ctrl-C ends it after the current step; --resume goes on from there.
    """
    from hyprstream.runtime import Note, Training, finish_training, load_settings, open_adapters

    _check(resume, discard, given_names(what, how, long))
    plan = None if resume else plan_of(what, how, long)
    session = session_of(ctx)
    output = session.output
    if plot is not None:
        write_curves(plot, [])  # refuse a file that cannot be written before the work
    settings = load_settings()
    with open_adapters(settings) as adapters:
        model = load_base(session, adapters, name, base_model, loading)
        folder, anchors = settings.training_folder, settings.anchors_folder
        with Training(adapters, name, model, folder, force=force, anchors=anchors) as training:
            if discard:
                training.discard()
            run = training.resume() if plan is None else training.begin(plan)
            if run.warning:
                output.warn(run.warning)
            _say_data(output, run)
            is_over = _train(output, run)
            if plot is not None:
                write_curves(plot, run.run.curve)
            if not is_over:
                output.hint(f"Go on with `hyprstream lora train start {name} --resume`.")
                raise KeyboardInterrupt
            done = finish_training(run, _PROMOTIONS[promote], Note(by=BY, why=why))
    if done.version is None:
        output.warn(f"there is no new version: {done.why}")
        return
    output.done(f"best after {done.step} steps; {done.why}")
    if done.drift is not None:
        output.done(f"loss on other text: {done.drift.share:+.1%} against the base model")
    if done.is_promoted:
        output.done(f"{name} is this version now")
    else:
        output.hint(f"`hyprstream lora promote {name}:candidate` lets the name point at it.")
    output.text(f"{name}@{done.version[:12]}\n")


@app.command("eval")
@grouped
def evaluate(
    ctx: Context,
    *,
    adapter: AdapterArgument,
    data: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Records with answers to be measured by; repeatable."),
    ],
    data_format: Annotated[
        DataFormat | None,
        typer.Option(help="Form of the records. Without it: what the keys of each show."),
    ] = None,
    base_model: BaseModelOption = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
    loading: LoadOptions,
) -> None:
    """Measure an adapter and its base model on records: loss, perplexity, exact answers.

    An answer is exact if greedy decoding would give every token of it.
    """
    from hyprstream.runtime import DataConfig, evaluate_adapter, load_settings, open_adapters

    session = session_of(ctx)
    config = DataConfig(form=data_format, held_out_share=0)
    with open_adapters(load_settings()) as adapters:
        model = load_base(session, adapters, adapter, base_model, loading)
        found = evaluate_adapter(adapters, adapter, model, data, config)
    rows: list[dict[str, Any]] = [
        {"model": who, **asdict(measured)}
        for who, measured in (("adapter", found.adapter), ("base model", found.base))
    ]
    session.output.table(
        rows,
        format,
        identifier="loss",
        shown=[
            {
                "model": row["model"],
                "samples": str(row["num_samples"]),
                "tokens": str(row["num_tokens"]),
                "loss": f"{row['loss']:.4f}",
                "perplexity": f"{row['perplexity']:.3f}",
                "tokens right": f"{row['token_accuracy']:.1%}",
                "exact answers": f"{row['exact_match']:.1%}",
            }
            for row in rows
        ],
    )
    session.output.done(
        f"the adapter's loss is the lower one for {found.num_better} of "
        f"{found.adapter.num_samples} samples"
    )


class _Stopping:
    """Turns the first Ctrl-C of a `with` block into a wish; the second one is obeyed at once."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._before: Any = None

    def __enter__(self) -> "_Stopping":
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.is_wanted:
            raise KeyboardInterrupt
        self.is_wanted = True


def _train(output: Output, run: TrainingRun) -> bool:
    """Take the steps, showing each; return whether they are all taken."""
    with _Stopping() as stopping, output.steps(run.length.num_steps) as shown:
        for progress in run.steps():
            shown.step(progress)
            if stopping.is_wanted and not run.run.is_over:
                run.save()
                return False
    return True


def _say_data(output: Output, run: TrainingRun) -> None:
    report, method = run.material.dataset.report, run.material.method
    output.done(
        f"{report.num_trained} {method} to learn, {report.num_held_out} held out, "
        f"{report.num_counted:,} of {report.num_tokens:,} tokens count; "
        f"{run.length.num_steps} steps"
    )
    for count, what in (
        (report.num_duplicates, "records say what an earlier one says and were left out"),
        (report.num_skipped, "samples were too long and were left out"),
        (report.num_cut, "samples were too long and lost their end"),
    ):
        if count:
            output.warn(f"{count} {what}")


def _check(resume: bool, discard: bool, given: list[str]) -> None:
    if resume and (given or discard):
        other = "--discard" if discard else given[0]
        raise InvalidRequestError(
            f"--resume goes on as the training began, and {other} says something else",
            hint=f"Leave out {other}, or --resume.",
        )
