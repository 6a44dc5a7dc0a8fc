"""`hyprstream auth key`: the keys by which the server knows its callers."""

from enum import StrEnum
from typing import Annotated

import typer

from hyprstream.cli.options import FormatOption, QuietOption, YesOption
from hyprstream.cli.output import Format
from hyprstream.cli.session import Context, session_of

app = typer.Typer(no_args_is_help=True, help="Keys of callers of `hyprstream server`.")


class Scope(StrEnum):
    """What a key is for."""

    INFERENCE = "inference"
    FEEDBACK = "feedback"
    INGEST = "ingest"
    ADMIN = "admin"


@app.command()
def create(
    ctx: Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people to know the key by.")],
    scope: Annotated[
        list[Scope],
        typer.Option(
            "--scope",
            help="What it is for; repeatable. inference asks, feedback says what one thinks of "
            "answers, ingest adds samples and rows, admin changes adapters.",
        ),
    ] = [Scope.INFERENCE, Scope.FEEDBACK],  # noqa: B006  # typer reads it and changes nothing
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="ADAPTER",
            help="An adapter that it may use; repeatable. Without it: all of them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a key and print it; it is kept as a hash, and cannot be shown again."""
    from hyprstream.runtime import load_settings
    from hyprstream.runtime.keys import KeyFile

    output = session_of(ctx).output
    keys = KeyFile(load_settings().keys_folder)
    key, stored = keys.create(name, [chosen.value for chosen in scope], adapter or None)
    output.text(f"{key}\n")
    output.done(f"key {stored.id} is for {', '.join(stored.scopes)}; it is not shown again")


@app.command("list")
def list_keys(
    ctx: Context,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """List the keys, without what would let anybody in."""
    from hyprstream.runtime import load_settings
    from hyprstream.runtime.keys import KeyFile

    output = session_of(ctx).output
    output.quiet |= quiet
    keys = KeyFile(load_settings().keys_folder).read()
    output.table(
        [
            {
                "id": key.id,
                "name": key.name,
                "scopes": list(key.scopes),
                "adapters": None if key.adapters is None else list(key.adapters),
                "created_at": key.created_at.isoformat(timespec="seconds"),
            }
            for key in keys
        ],
        format,
        identifier="id",
        shown=[
            {
                "id": key.id,
                "name": key.name,
                "scopes": ", ".join(key.scopes),
                "adapters": "all" if key.adapters is None else ", ".join(key.adapters),
                "created": key.created_at.isoformat(timespec="seconds"),
            }
            for key in keys
        ],
    )


@app.command()
def revoke(
    ctx: Context,
    key: Annotated[str, typer.Argument(metavar="ID", help="Of the key, as `list` shows it.")],
    yes: YesOption = False,
) -> None:
    """Take a key back; servers that run notice at once."""
    from hyprstream.runtime import load_settings
    from hyprstream.runtime.keys import KeyFile

    output = session_of(ctx).output
    keys = KeyFile(load_settings().keys_folder)
    if output.confirm(f"revoke the key {key}?", yes=yes):
        output.done(f"revoked {keys.revoke(key).name}")
