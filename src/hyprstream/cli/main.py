"""The `hyprstream` command: global options, the list of commands, and how it ends.

Exit codes: 0 done; 1 a bug, a failed check, or a reader of stdout that went away; 2 to 7 an
error of ours, as `hyprstream.errors` lists them; 130 Ctrl-C. Imports no torch.
"""

import io
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from hyprstream import __version__
from hyprstream.cli import (
    auth,
    cache,
    chat,
    doctor,
    infer,
    lora,
    model,
    models_listed,
    ps,
    quickstart,
    server,
    sql,
)
from hyprstream.cli.options import QuietOption
from hyprstream.cli.output import Output
from hyprstream.cli.session import Context, Session, session_of
from hyprstream.errors import HyprstreamError

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_BUG_HINT = "This is a bug. Run it again with `hyprstream --debug ...` and report what it prints."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; no error of a command leaves here."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    session = Session(output=Output())
    try:
        return _run(arguments, session)
    except HyprstreamError as error:
        session.output.failure(error)
        _trace(session)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last stop: asks for a bug report
        session.output.error(f"{type(error).__name__}: {error}", hint=_BUG_HINT)
        _trace(session)
        return 1


def _run(arguments: Sequence[str] | None, session: Session) -> int:
    command = typer.main.get_command(build())
    try:
        code = command.main(arguments, "hyprstream", standalone_mode=False, obj=session)
    except typer.TyperException as error:
        message = error.format_message()
        context = getattr(error, "ctx", None)  # of usage errors: the command that was meant
        path = context.command_path if context else "hyprstream"
        if message:  # a command group alone has just printed its help
            session.output.error(message, hint=f"See `{path} --help`.")
        return error.exit_code
    return code or 0


def _trace(session: Session) -> None:
    if session.debug:
        traceback.print_exc()


def build() -> typer.Typer:
    """Put the commands together."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_options)
    app.command()(infer.infer)
    app.command()(chat.chat)
    app.add_typer(model.app, name="model")
    app.add_typer(cache.app, name="cache")
    app.add_typer(lora.app, name="lora")
    app.command()(server.server)
    app.command()(ps.ps)
    app.add_typer(auth.app, name="auth")
    app.command()(sql.sql)
    app.command()(quickstart.quickstart)
    app.command()(doctor.doctor)
    aliases = ("pull", model.pull), ("ls", models_listed.list_models), ("rm", model.remove)
    for alias, command in aliases:
        app.command(alias, hidden=True)(command)
    app.command("run", hidden=True)(chat.chat)
    app.command("serve", hidden=True)(server.server)
    return app


def _print_version(wanted: bool) -> bool:
    if wanted:
        Output().text(f"hyprstream {__version__}\n")
        raise typer.Exit
    return wanted


def _options(
    ctx: Context,
    version: Annotated[  # noqa: ARG001  # handled by its callback
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Run language models on this machine."""
    session = session_of(ctx)
    session.debug = debug
    session.output.quiet = quiet
