"""`hyprstream lora train status|policy`: how learning stands, and what it may do."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hyprstream.cli.curves import write_curves
from hyprstream.cli.options import AdapterNameArgument, FormatOption, UrlOption, grouped
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import Context, LearningPolicy, LearningStatus, Trial, session_of
from hyprstream.cli.text import in_time
from hyprstream.cli.train_samples import told
from hyprstream.cli.train_server import server_at
from hyprstream.errors import InvalidRequestError

_NUM_DECISIONS = 5
_WATCH_EVERY_S = 1.0


def status(
    ctx: Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Without it: all adapters.", show_default=False),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw losses as .svg or .png: those of the training that goes on, or else those "
            "of the versions, one after the other.",
            show_default=False,
        ),
    ] = None,
    url: UrlOption = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show what adapters learn from, what waits, what was spent today, and what was decided.

    It works while another process trains. With --url it asks a server of another home.
    """
    from hyprstream.runtime import learning_status, load_settings, open_adapters

    output, settings = session_of(ctx).output, load_settings()
    if url is not None:
        if name is None or watch or plot is not None:
            raise InvalidRequestError(
                "a server is asked about one adapter at a time",
                hint="Name it, and leave out --watch and --plot.",
            )
        with server_at(settings, url) as server:
            output.record(server.status(name), format)
        return
    if watch and format is not Format.TABLE:
        raise InvalidRequestError(
            "--watch is for people to look at", hint="Leave it out, or leave out --format."
        )
    if plot is not None and name is None:
        raise InvalidRequestError("--plot draws one adapter", hint="Name it.")
    with open_adapters(settings) as adapters:
        while True:
            found = learning_status(adapters, settings, name)
            if watch:
                output.clear()
            _show(output, found, format, is_one=name is not None)
            if plot is not None:
                _draw(plot, found[0])
            if not watch:
                break
            time.sleep(_WATCH_EVERY_S)
    if not found:
        output.hint("There is no adapter; `hyprstream lora create --name NAME` makes one.")


@grouped
def policy(
    ctx: Context,
    *,
    name: AdapterNameArgument,
    learn: Annotated[
        Literal["off", "feedback", "all"] | None,
        typer.Option(
            help="What of the traffic is learnt from: nothing; answers that users liked or "
            "corrected; every complete answer.",
            show_default=False,
        ),
    ] = None,
    trusted: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Records on which no version may get worse; a copy is kept. Repeatable.",
            show_default=False,
        ),
    ] = None,
    forget_trusted: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILENAME", help="Trust such a file no longer. Repeatable.", show_default=False
        ),
    ] = None,
    steps_per_day: Annotated[
        int | None, typer.Option(metavar="N", help="Optimizer steps.", show_default=False)
    ] = None,
    seconds_per_day: Annotated[
        float | None, typer.Option(metavar="S", help="Time of learning.", show_default=False)
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of steps.", show_default=False)
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", help="Delete samples after so long; 0: never.", show_default=False
        ),
    ] = None,
    keep_samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep so many samples at most.", min=0, show_default=False),
    ] = None,
    canary: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Let a new version answer this share of the requests, as 0.1, until it has proved "
            "itself; 0: all at once.",
            show_default=False,
        ),
    ] = None,
    usual_budget: Annotated[
        bool, typer.Option("--usual-budget", help="Take the budget of the settings again.")
    ] = False,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Set what an adapter learns from, within which budget, and what it is judged by; show it.

    It is kept with the adapter's name, whatever version that points at. What is not given stays.
    """
    from hyprstream.runtime import Policies, learning_status, load_settings, open_adapters

    output, settings = session_of(ctx).output, load_settings()
    given = {
        "learn": learn,
        "steps_per_day": steps_per_day,
        "seconds_per_day": seconds_per_day,
        "tokens_per_day": tokens_per_day,
        "keep_days": keep_days,
        "keep_samples": keep_samples,
        "canary": canary,
    }
    with open_adapters(settings) as adapters:
        policies = Policies(adapters)
        wanted = _changed(policies.of(name), given, usual_budget=usual_budget)
        if wanted is not None:
            policies.set(name, wanted)
        for file in trusted or []:
            number = policies.trust(name, file)
            output.done(f"{file.name}: {number} records are trusted")
            if number < settings.train.gate.min_trusted:
                output.warn(
                    f"{file.name} has {number} records; learning needs "
                    f"{settings.train.gate.min_trusted} samples of each trusted set"
                )
        for known in forget_trusted or []:
            policies.distrust(name, known)
        (found,) = learning_status(adapters, settings, name)
    output.record(_policy_record(found), format, shown=policy_lines(found))


def policy_lines(status: LearningStatus) -> dict[str, str]:
    """Return what an adapter learns from, as a person reads it."""
    budget, policy = status.budget, status.policy
    days = "as usual" if policy.keep_days is None else f"{policy.keep_days:g} days"
    most = "the usual number" if policy.keep_samples is None else f"{policy.keep_samples:,}"
    return {
        "learns from traffic": status.policy.learn,
        "keeps samples": f"{days}, {most} at most",
        "trusted": ", ".join(["unrelated text", *status.trusted]),
        "new versions": f"answer {policy.canary:.3g} of the requests first"
        if policy.canary
        else "answer all requests at once",
        "budget a day": f"{budget.steps} steps, {in_time(budget.seconds)}, "
        f"{budget.tokens:,} tokens",
    }


def _changed(
    before: LearningPolicy, given: Mapping[str, Any], *, usual_budget: bool
) -> LearningPolicy | None:
    """Return the policy that was asked for; None if nothing was."""
    asked = {name: value for name, value in given.items() if value is not None}
    if usual_budget:
        usual = ("steps_per_day", "seconds_per_day", "tokens_per_day")
        asked = {**dict.fromkeys(usual), **asked}
    return replace(before, **asked) if asked else None


def _policy_record(status: LearningStatus) -> dict[str, Any]:
    return {
        "adapter": status.name,
        "learn": status.policy.learn,
        "keep_days": status.policy.keep_days,
        "keep_samples": status.policy.keep_samples,
        "canary": status.policy.canary,
        "trusted": list(status.trusted),
        "budget": asdict(status.budget),
    }


def _show(
    output: Output,
    found: Sequence[LearningStatus],
    format: Format,  # noqa: A002
    *,
    is_one: bool,
) -> None:
    if is_one:
        (status,) = found
        output.record(_record(status), format, shown=_lines(status))
        return
    output.table(
        [_record(status) for status in found],
        format,
        identifier="adapter",
        shown=[
            {
                "name": status.name,
                "learns from": status.policy.learn,
                "waiting": f"{status.samples.waiting} of {status.min_waiting}",
                "held out": f"{status.samples.held_out} of {status.min_held_out}",
                "used": str(status.samples.used),
                "steps today": f"{status.spent.steps} of {status.budget.steps}",
                "last decision": status.decisions[-1].action if status.decisions else "-",
                "now": _now(status),
            }
            for status in found
        ],
    )


def _record(status: LearningStatus) -> dict[str, Any]:
    return {
        **_policy_record(status),
        "spent": {key: value for key, value in asdict(status.spent).items() if key != "day"},
        "samples": asdict(status.samples),
        "is_training": status.is_training,
        "training": None if status.working is None else asdict(status.working),
        "can_resume": status.can_resume,
        "is_journal_held": status.is_journal_held,
        "canary_out": status.canary_record,
        "decisions": [
            {**asdict(decision), "samples": len(decision.samples)}
            for decision in status.decisions[-_NUM_DECISIONS:]
        ],
    }


def _lines(status: LearningStatus) -> dict[str, str]:
    samples, spent, budget = status.samples, status.spent, status.budget
    lines = {
        "adapter": status.name,
        **policy_lines(status),
        "spent today": f"{spent.steps} steps, {in_time(spent.seconds)}, {spent.tokens:,} tokens"
        + ("" if spent.is_within(budget) else "; that is all"),
        "waiting": f"{samples.waiting}; {status.min_waiting} make a version",
        "held out": f"{samples.held_out}; {status.min_held_out} are needed to judge one",
        "used": f"{samples.used}, {samples.dropped} dropped, {samples.withdrawn} withdrawn",
        "now": _now(status),
    }
    if status.trial is not None:
        lines["canary"] = _canary_line(status, status.trial)
    for decision in status.decisions[-_NUM_DECISIONS:][::-1]:
        at = datetime.fromtimestamp(decision.at).astimezone()
        why = "; ".join((told(decision.numbers), *decision.reasons))
        lines[f"{at:%m-%d %H:%M:%S}"] = f"{decision.action}: {why}"
    return lines


def _canary_line(status: LearningStatus, trial: Trial) -> str:
    canary, own, others = trial.canary, trial.own, trial.others
    return (
        f"{canary.version[:12]} answers {canary.share:.3g} of the requests since "
        f"{canary.since.astimezone():%m-%d %H:%M:%S}: {own.answers} of "
        f"{status.canary.max_answers} answers, {own.bad} disliked, {own.good} liked; "
        f"{canary.parent[:12]} before it {others.answers}, {others.bad}, {others.good}"
    )


def _now(status: LearningStatus) -> str:
    working = status.working
    if working is not None:
        steps = f", step {working.step} of {working.num_steps}" if working.num_steps else ""
        loss = "" if working.loss is None else f", loss {working.loss:.4f}"
        since = in_time(max(0.0, time.time() - working.began))
        return (
            f"{working.phase} from {working.source} in process {working.pid}{steps}{loss}, {since}"
        )
    if status.is_training:
        return "a process trains it"
    if status.waits_for_canary:
        return "waits for the canary"
    if status.can_resume:
        return "interrupted; --resume goes on"
    if status.is_journal_held:
        return "a process learns beside serving, or from samples"
    return "ready" if status.has_enough else "-"


def _draw(file: Path, status: LearningStatus) -> None:
    from hyprstream.runtime import Point

    if status.working is not None:
        curve = [
            Point(step=step, loss=loss, held_out_loss=held_out)
            for step, loss, held_out in status.working.curve
        ]
        write_curves(file, curve)
        return
    withdrawn = {d.version for d in status.decisions if d.action == "withdrawn"}
    made = [
        decision.numbers
        for decision in status.decisions
        if decision.action == "published"
        or (decision.action == "canary" and decision.version not in withdrawn)
    ]
    losses = [numbers["held_out_loss"] for numbers in made if "held_out_loss" in numbers]
    first = [
        numbers["parent_held_out_loss"] for numbers in made if "parent_held_out_loss" in numbers
    ][:1]
    points = [
        Point(step=number, loss=None, held_out_loss=loss)
        for number, loss in enumerate([*first, *losses])
    ]
    write_curves(file, points, axis="version")
