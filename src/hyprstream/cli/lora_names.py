"""The commands of `hyprstream lora` that move names and tags, and take them away."""

from typing import Annotated

import typer

from hyprstream.cli.options import (
    AdapterArgument,
    AdapterNameArgument,
    FormatOption,
    QuietOption,
    WhyOption,
    YesOption,
)
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import Adapters, Collected, Context, session_of
from hyprstream.cli.text import in_bytes
from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterRef

BY = "hyprstream lora"
"""Who moves names, in histories."""


def history(
    ctx: Context,
    name: AdapterNameArgument,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """List where a name has pointed, the first version first; with --quiet, versions only."""
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    output.quiet |= quiet
    with open_adapters(load_settings()) as adapters:
        moves = adapters.history(name)
    output.table(
        [
            {
                "version": move.version,
                "action": move.action,
                "at": move.at.isoformat(timespec="seconds"),
                "by": move.note.by,
                "why": move.note.why,
            }
            for move in moves
        ],
        format,
        identifier="version",
        shown=[
            {
                "version": move.version[:12],
                "action": move.action,
                "at": f"{move.at.astimezone():%Y-%m-%d %H:%M:%S}",
                "by": move.note.by,
                "why": move.note.why,
            }
            for move in moves
        ],
    )


def promote(ctx: Context, adapter: AdapterArgument, why: WhyOption = "") -> None:
    """Let a name point at one of its versions: that of NAME:TAG or NAME@VERSION."""
    from hyprstream.runtime import Note, load_settings, open_adapters

    with open_adapters(load_settings()) as adapters:
        version = adapters.promote(adapter, Note(by=BY, why=why))
        name = AdapterRef.parse(adapter).name
    session_of(ctx).output.text(f"{name}@{version[:12]}\n")


def rollback(ctx: Context, name: AdapterNameArgument, why: WhyOption = "") -> None:
    """Undo the last promotion that was not undone yet; twice goes back two."""
    from hyprstream.runtime import Note, load_settings, open_adapters

    with open_adapters(load_settings()) as adapters:
        version = adapters.rollback(name, Note(by=BY, why=why))
    session_of(ctx).output.text(f"{name}@{version[:12]}\n")


def tag(
    ctx: Context,
    adapter: AdapterArgument,
    tag: Annotated[
        str | None,
        typer.Argument(metavar="TAG", help="The tag: stable, v2. Without it tags are listed."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the tags of NAME.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Take the tag away.")] = False,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """Let NAME:TAG stand for a version: that of NAME, NAME:TAG or NAME@VERSION.

    A tag that is there already is moved. NAME:TAG can be written wherever an adapter is named.
    """
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    output.quiet |= quiet
    if listed and (delete or tag is not None):
        raise InvalidRequestError(
            "--list lists all tags of an adapter", hint="Leave out --delete and the tag."
        )
    with open_adapters(load_settings()) as adapters:
        if delete:
            gone = _tagged(adapter, tag)
            adapters.untag(str(gone))
            output.done(f"{gone} is gone, its version is not")
        elif tag is not None:
            _put(adapters, adapter, tag, output)
        else:
            tags = adapters.tags(_alone(adapter))
            output.table(
                [{"tag": tag, "version": version} for tag, version in tags.items()],
                format,
                identifier="tag",
                shown=[{"tag": tag, "version": version[:12]} for tag, version in tags.items()],
            )
            if not tags:
                output.hint(f"{adapter} has no tag; `hyprstream lora tag {adapter} TAG` makes one.")


def delete(ctx: Context, name: AdapterNameArgument, yes: YesOption = False) -> None:
    """Delete an adapter, with its history and its versions; their room is free at once."""
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    with open_adapters(load_settings()) as adapters:
        num_moves = len(adapters.history(name))  # refuse a wrong name before asking
        moves = f"{num_moves} moves" if num_moves > 1 else "one move"
        if output.confirm(f"Delete adapter {name} and its history of {moves}?", yes=yes):
            output.done(f"deleted {name}: {_freed(adapters.delete(name))}")


def cleanup(
    ctx: Context,
    keep_history: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Let versions go from the history too, but for what N rollbacks reach and the "
            "latest N moves of each name. Without it all of the history stays.",
            show_default=False,
        ),
    ] = None,
    now: Annotated[
        bool,
        typer.Option(
            "--now",
            help="Also versions of the last day. Not while adapters are made or trained: "
            "theirs have no name yet.",
        ),
    ] = False,
    yes: YesOption = False,
) -> None:
    """Free the room of versions that no name, tag or history leads to.

    What killed programs left goes too, and what somebody reads stays. Where --keep-history or
    --now may remove what is still wanted, the command asks.
    """
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    is_safe = keep_history is None and not now
    with open_adapters(load_settings()) as adapters:
        if output.confirm("Remove versions for good?", yes=yes or is_safe):
            output.done(_freed(adapters.collect(keep_history=keep_history, at_once=now)))


def _put(adapters: Adapters, adapter: str, tag: str, output: Output) -> None:
    """Put a tag on a version, and print what can be written from now on."""
    version = adapters.resolve(adapter)
    name = AdapterRef.parse(adapter).name
    ref = AdapterRef(name=name, tag=tag)
    before = adapters.tags(name).get(tag, version)
    adapters.tag(str(ref), version)
    instead = "" if before == version else f" instead of {before[:12]}"
    output.done(f"{ref} stands for {version[:12]}{instead}")
    output.text(f"{ref}\n")


def _tagged(adapter: str, tag: str | None) -> AdapterRef:
    """Return the tag that NAME TAG or NAME:TAG names."""
    ref = AdapterRef.parse(adapter if tag is None else f"{adapter}:{tag}")
    if ref.tag is None or ref.prefix is not None:
        raise InvalidRequestError(f"{adapter!r} names no tag", hint="Write NAME TAG --delete.")
    return ref


def _alone(adapter: str) -> str:
    """Return the name of an adapter of which nothing else is said."""
    ref = AdapterRef.parse(adapter)
    if ref.tag is not None or ref.prefix is not None:
        raise InvalidRequestError(
            f"{adapter!r} is one version, and tags are those of {ref.name!r}",
            hint=f"Write {ref.name}, or add the tag to put on this version.",
        )
    return ref.name


def _freed(collected: Collected) -> str:
    count = len(collected.versions)
    versions = "1 version" if count == 1 else f"{count} versions"
    return f"{versions} removed, {in_bytes(collected.freed_bytes)} freed"
