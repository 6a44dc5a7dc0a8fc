"""`hyprstream lora train`: adapters learn from files, in the foreground."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
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
from hyprstream.cli.session import Context, Trained, TrainingRun, load_base, session_of
from hyprstream.cli.stopping import Stopping
from hyprstream.cli.train_options import (
    DataFormat,
    DataOptions,
    RunOptions,
    TrainOptions,
    given_names,
    plan_of,
)
from hyprstream.cli.train_samples import sample, start_from_samples
from hyprstream.cli.train_server import forget, stop
from hyprstream.cli.train_status import policy, status
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
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Without --data: learn again from the samples of the version that was rejected "
            "last, with other settings perhaps.",
        ),
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
    """Train an adapter, and print the reference of the version that comes of it.

    With --data it learns from files. Ctrl-C, or `train stop`, ends it after the current step;
    --resume goes on from there.

    Without --data it learns from the samples that were sent and wait, as it does beside
    serving: what comes of them is judged, and published only if it is better on what was held
    out and not worse on what is trusted. Of the settings those of training hold, and --epochs.
    """
    from hyprstream.runtime import Note, Training, finish_training, load_settings, open_adapters

    _check(resume, discard, retry, given_names(what, how, long))
    if not resume and not what.data:
        flags = {
            "--discard": discard,
            "--promote": promote is not None,
            "--plot": plot is not None,
            "--why": why,
            "--force": force,
        }
        _check_samples([*given_names(what, long), *(name for name in flags if flags[name])])
        start_from_samples(
            session_of(ctx), name, base_model, loading, how.given(), long.epochs, retry=retry
        )
        return
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
            with output.counted("writing down what the model says itself") as texts:
                training.tell = texts.show
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
    _say_done(output, name, done)


app.command()(stop)
app.command()(status)
app.command()(sample)
app.command()(policy)
app.command()(forget)


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


def _train(output: Output, run: TrainingRun) -> bool:
    """Take the steps, showing each; return whether they are all taken."""
    with Stopping() as stopping, output.steps(run.length.num_steps) as shown:
        for progress in run.steps():
            shown.step(progress)
            is_wanted = stopping.is_wanted or run.is_stop_wanted
            if is_wanted and not run.run.is_over:
                run.save()
                return False
    return True


def _say_done(output: Output, name: str, done: Trained) -> None:
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


def _say_data(output: Output, run: TrainingRun) -> None:
    report, method = run.material.dataset.report, run.material.method
    output.done(
        f"{report.num_trained} {method} to learn, {report.num_held_out} held out, "
        f"{report.num_counted:,} of {report.num_tokens:,} tokens count; "
        f"{run.length.num_steps} steps"
    )
    for count, what in (
        (report.num_duplicates, "records say what an earlier one says and were left out"),
        (report.num_judged_by, "records ask what is judged by and were left out"),
        (report.num_skipped, "samples were too long and were left out"),
        (report.num_cut, "samples were too long and lost their end"),
    ):
        if count:
            output.warn(f"{count} {what}")


def _check_samples(given: list[str]) -> None:
    """Refuse what is said of files where there are none.

    Raises:
        InvalidRequestError: Something is.
    """
    others = [option for option in given if option != "--epochs"]
    if others:
        raise InvalidRequestError(
            f"{others[0]} is about learning from files, and no file is named",
            hint=f"Name the files with --data, or leave out {others[0]}.",
        )


def _check(resume: bool, discard: bool, retry: bool, given: list[str]) -> None:
    if retry and (resume or "--data" in given):
        raise InvalidRequestError(
            "--retry is about samples that were sent",
            hint="Leave it out, or leave out --data and --resume.",
        )
    if resume and (given or discard):
        other = "--discard" if discard else given[0]
        raise InvalidRequestError(
            f"--resume goes on as the training began, and {other} says something else",
            hint=f"Leave out {other}, or --resume.",
        )
