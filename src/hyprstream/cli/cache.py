"""`hyprstream cache`: what the model cache takes, what is damaged in it, what can go."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from hyprstream.cli.options import FormatOption, QuietOption, YesOption
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import (
    CacheStatus,
    Context,
    Damage,
    Leftover,
    Progress,
    Repair,
    Upkeep,
    session_of,
)
from hyprstream.cli.text import in_bytes
from hyprstream.errors import HyprstreamError
from hyprstream.refs import ModelRef

app = typer.Typer(no_args_is_help=True, help="Measure, verify, mend and clean the model cache.")


@app.command()
def status(ctx: Context, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Say what the cache holds and takes of the disk."""
    output = session_of(ctx).output
    found = _upkeep().status()
    output.record(_status_record(found), format, shown=_status_shown(found))
    if found.leftovers:
        output.hint("`hyprstream cache cleanup` removes what is left over.")
    if found.num_unreadable:
        output.hint("`hyprstream cache verify` names the manifests that cannot be read.")


@app.command()
def cleanup(
    ctx: Context,
    old_revisions: Annotated[
        bool,
        typer.Option("--old-revisions", help="Also models of which a newer revision is here."),
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Also downloads of today that could be continued.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show it and remove nothing.")] = False,
    yes: YesOption = False,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """Remove what is left over: of killed fetches, of removed models, from quarantine."""
    output = session_of(ctx).output
    output.quiet |= quiet
    upkeep = _upkeep()
    found = upkeep.leftovers(old_revisions=old_revisions, partials=partial)
    _show_leftovers(output, found, format)
    size = in_bytes(sum(leftover.size_bytes for leftover in found))
    if not found:
        output.done("nothing is left over")
    elif dry_run:
        output.done(f"{len(found)} would go, {size} would be free; nothing was removed")
    elif output.confirm(f"Remove {len(found)} and free {size}?", yes=yes):
        output.done(f"{in_bytes(upkeep.clean(found))} freed")


@app.command()
def verify(
    ctx: Context,
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF", help="Models in the cache. Without: all.", show_default=False
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch again what is damaged, and nothing else.")
    ] = False,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """Read and hash models; the exit code is 1 if one is damaged and was not mended."""
    output = session_of(ctx).output
    output.quiet |= quiet
    upkeep = _upkeep()
    models = _chosen(upkeep, refs or [])
    sizes = {model.ref: model.size_bytes for model in upkeep.status().models}
    with output.progress() as progress:
        if len(models) > 1:
            total = sum(sizes.get(ref, 0) for ref in models)
            progress.start(f"verifying {len(models)} models", total)
        if repair:
            results = [_repaired(upkeep.repair, ref, progress) for ref in models]
        else:
            results = [_Result(ref, upkeep.verify(ref, progress)) for ref in models]
        if len(models) > 1:
            progress.done()
    _show_results(output, results, format)
    bad = [result for result in results if result.is_bad]
    mended = [result for result in results if result.damages and not result.is_bad]
    output.done(_summary(len(models), len(bad), len(mended)))
    if bad and not repair:
        output.hint("Add --repair to fetch again what is damaged.")
    if bad:
        raise typer.Exit(1)


class _Result:
    """What became of one model."""

    def __init__(
        self,
        ref: ModelRef,
        damages: Sequence[Damage],
        *,
        done: Repair | None = None,
        error: HyprstreamError | None = None,
    ) -> None:
        self.ref = ref
        self.damages = damages
        self.done = done
        self.error = error

    @property
    def is_bad(self) -> bool:
        return self.error is not None or (bool(self.damages) and self.done is None)

    def record(self) -> dict[str, Any]:
        done = self.done
        return {
            "ref": str(self.ref),
            "sound": not self.is_bad,
            "damages": [{"file": item.file, "problem": item.problem} for item in self.damages],
            "repaired": done is not None and bool(self.damages),
            "fetched_bytes": done.fetched_bytes if done else 0,
            "quarantined": [str(path) for path in done.quarantined] if done else [],
            "error": str(self.error) if self.error else None,
        }


def _repaired(
    repair: Callable[[ModelRef, Progress], Repair], ref: ModelRef, progress: Progress
) -> _Result:
    """Mend one model; a failure does not stop the rest."""
    try:
        done = repair(ref, progress)
    except HyprstreamError as error:
        return _Result(ref, (), error=error)
    return _Result(ref, done.damages, done=done)


def _upkeep() -> Upkeep:
    from hyprstream.runtime import load_settings, open_catalog

    return open_catalog(load_settings()).upkeep


def _chosen(upkeep: Upkeep, refs: Sequence[str]) -> list[ModelRef]:
    if not refs:
        return list(upkeep.revisions())
    named = [pinned for ref in refs for pinned in upkeep.revisions(ModelRef.parse(ref))]
    return list(dict.fromkeys(named))


def _summary(num_models: int, num_bad: int, num_mended: int) -> str:
    if not num_models:
        return "the cache is empty"
    mended = f", {num_mended} mended" if num_mended else ""
    damaged = f", {num_bad} damaged" if num_bad else ""
    sound = num_models - num_bad - num_mended
    return f"{num_models} verified: {sound} sound{mended}{damaged}"


def _show_results(
    output: Output,
    results: Sequence[_Result],
    format: Format,  # noqa: A002
) -> None:
    listed = [result for result in results if result.is_bad] if output.quiet else results
    shown = []
    for result in results:
        outcome = "damaged" if result.is_bad else "mended"
        shown += [
            {
                "ref": str(result.ref),
                "file": damage.file or "(manifest)",
                "problem": damage.problem,
                "outcome": "quarantined" if damage.foreign and result.done else outcome,
            }
            for damage in result.damages
        ]
    rows = [result.record() for result in listed]
    output.table(rows, format, identifier="ref", shown=shown)
    for result in results:
        if result.error is not None:
            output.failure(result.error)


def _show_leftovers(
    output: Output,
    found: Sequence[Leftover],
    format: Format,  # noqa: A002
) -> None:
    output.table(
        [
            {
                "kind": leftover.kind,
                "name": leftover.name,
                "path": str(leftover.path),
                "size_bytes": leftover.size_bytes,
            }
            for leftover in found
        ],
        format,
        identifier="path",
        shown=[
            {
                "what": leftover.kind,
                "name": leftover.name,
                "size": in_bytes(leftover.size_bytes),
            }
            for leftover in found
        ],
    )


def _status_record(found: CacheStatus) -> dict[str, Any]:
    return {
        "folder": str(found.folder),
        "total_bytes": found.total_bytes,
        "unique_bytes": found.unique_bytes,
        "shared_bytes": found.shared_bytes,
        "unused_bytes": found.unused_bytes,
        "staged_bytes": found.staged_bytes,
        "partial_bytes": found.partial_bytes,
        "free_bytes": found.free_bytes,
        "num_unreadable": found.num_unreadable,
        "models": [
            {
                "ref": str(model.ref),
                "state": model.state,
                "size_bytes": model.size_bytes,
                "unique_bytes": model.unique_bytes,
            }
            for model in found.models
        ],
        "leftovers": [
            {"kind": item.kind, "name": item.name, "size_bytes": item.size_bytes}
            for item in found.leftovers
        ],
    }


def _status_shown(found: CacheStatus) -> dict[str, str]:
    states = Counter[str](model.state for model in found.models)
    states["unreadable"] = found.num_unreadable
    kinds = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    left = sum(leftover.size_bytes for leftover in found.leftovers)
    return {
        "folder": str(found.folder),
        "models": kinds or "none",
        "on disk": in_bytes(found.total_bytes),
        "of one model": in_bytes(found.unique_bytes),
        "shared": in_bytes(found.shared_bytes),
        "unused": in_bytes(found.unused_bytes),
        "being fetched": in_bytes(found.staged_bytes),
        "to be continued": in_bytes(found.partial_bytes),
        "left over": f"{in_bytes(left)} in {len(found.leftovers)}",
        "free": in_bytes(found.free_bytes),
    }
