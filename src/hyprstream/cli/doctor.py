"""`hyprstream doctor`: is this machine fit to run models?"""

import dataclasses

import typer

from hyprstream.cli.options import FormatOption
from hyprstream.cli.output import Format
from hyprstream.cli.session import Context, session_of


def doctor(ctx: Context, format: FormatOption = Format.TABLE) -> None:  # noqa: A002
    """Look at this machine and its settings; the exit code is 1 if something fails."""
    from hyprstream.runtime import environment_report, load_settings

    output = session_of(ctx).output
    checks = environment_report(load_settings())
    output.table(
        [dataclasses.asdict(check) for check in checks],
        format,
        identifier="name",
        shown=[
            {"check": check.name, "status": check.status, "detail": check.detail}
            for check in checks
        ],
    )
    for check in checks:
        if check.status != "ok":
            output.hint(f"{check.name}: {check.hint}" if check.hint else "")
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
