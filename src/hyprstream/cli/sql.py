"""`hyprstream sql`: statements on what this machine has, or on a server."""

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyprstream.cli.lines import Lines, PipeLines, TerminalLines
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import Context, session_of
from hyprstream.errors import HyprstreamError, UnsupportedError

if TYPE_CHECKING:
    Rows = Callable[[str], Sequence[Mapping[str, Any]]]


class SqlFormat(StrEnum):
    """How rows are written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"


def sql(
    ctx: Context,
    *,
    command: Annotated[
        str | None, typer.Option("-c", "--command", help="The statement.", metavar="QUERY")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Ask the server at this address instead.", metavar="HOST:PORT"),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="Authority that vouches for the server, PEM.", metavar="FILE"),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help="Certificate chain to show the server, PEM.", metavar="FILE"),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.", metavar="FILE")] = None,
    format: Annotated[  # noqa: A002
        SqlFormat, typer.Option(help="How to print rows.")
    ] = SqlFormat.TABLE,
) -> None:
    """Ask for what this machine has, in SQL.

    The tables: models, adapters, versions, moves, samples, decisions, requests, vector_tables,
    and every table of vectors. The functions: embed, generate, similarity, search.

    Without -c, statements are read line by line. A key for the server is taken from the
    environment, as HYPRSTREAM_KEY.
    """
    output = session_of(ctx).output
    if host is not None:
        _serve(output, _asking(host, tls_ca, tls_cert, tls_key), command, format)
        return
    from hyprstream.runtime import load_settings, open_adapters

    settings = load_settings()
    try:
        from hyprstream.runtime.warehouse.tenants import open_warehouses
        from hyprstream.runtime.warehouse.warehouse import Caller
    except ModuleNotFoundError as error:
        raise _without_extra(error) from error
    me = Caller("this machine", can_write=True)
    with open_adapters(settings) as adapters, open_warehouses(settings, adapters) as warehouses:
        warehouse = warehouses.of(me)
        _serve(output, lambda text: warehouse.query(me, text).to_pylist(), command, format)


def _asking(host: str, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None) -> "Rows":
    import os

    try:
        from hyprstream.flight.client import query
    except ModuleNotFoundError as error:
        raise _without_extra(error) from error
    key = os.environ.get("HYPRSTREAM_KEY", "")
    files = {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    return lambda text: query(host, text, key=key, **files).to_pylist()


def _without_extra(error: ModuleNotFoundError) -> UnsupportedError:
    return UnsupportedError(
        f"SQL needs {error.name}, which is not installed",
        hint="Install it with `pip install 'hyprstream[flight]'`.",
    )


def _serve(output: Output, rows: "Rows", command: str | None, format: SqlFormat) -> None:  # noqa: A002
    if command is not None:
        _print(output, rows(command), format)
        return
    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    lines: Lines = TerminalLines() if interactive else PipeLines()
    while (text := lines.read()) is not None:
        if not text.strip():
            continue
        try:
            _print(output, rows(text), format)
        except HyprstreamError as error:
            if not interactive:
                raise
            output.failure(error)


def _told(value: Any) -> Any:
    """Return a value as JSON and YAML know it; times and bytes as text, numbers unrounded."""
    if isinstance(value, Decimal):
        number = int(value) if value == value.to_integral_value() else float(value)
        return number if Decimal(str(number)) == value else str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_told(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): _told(entry) for name, entry in value.items()}
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: Any) -> Any:
    """Return a value as CSV knows it: nested ones as in JSON, numbers and texts as they are."""
    return (
        value if value is None or isinstance(value, str | int | float | Decimal) else _told(value)
    )


def _print(output: Output, rows: Sequence[Mapping[str, Any]], format: SqlFormat) -> None:  # noqa: A002
    if format is SqlFormat.CSV:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if rows:
            writer.writerow(rows[0])
        writer.writerows(map(_cell, row.values()) for row in rows)
        output.text(text.getvalue())
        return
    rows = [{name: _told(value) for name, value in row.items()} for row in rows]
    shown = [{name: "" if v is None else str(v) for name, v in row.items()} for row in rows]
    identifier = next(iter(rows[0]), "") if rows else ""
    output.table(rows, Format(format.value), identifier=identifier, shown=shown)
