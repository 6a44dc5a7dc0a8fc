"""`hyprstream sql`: statements on what this machine has, or on a server."""

import csv
import io
import os
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
from hyprstream.errors import HyprstreamError, InvalidRequestError, UnsupportedError

if TYPE_CHECKING:
    Rows = Callable[[str], Any]  # what pyarrow calls a table


class SqlFormat(StrEnum):
    """How rows are written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"
    PARQUET = "parquet"


def sql(
    ctx: Context,
    *,
    command: Annotated[
        str | None, typer.Option("-c", "--command", help="The statement.", metavar="QUERY")
    ] = None,
    upload: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE=FILE",
            help="Put the rows of a file of yours in the place of a table first; repeatable. "
            ".parquet, .csv, .jsonl or .arrow.",
        ),
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

    The tables: models, adapters, versions, moves, training_runs, samples, decisions, requests,
    events, vector_tables, and every table of vectors. The functions: embed, generate, similarity,
    search.

    Without -c, statements are read line by line. A key for the server is taken from the
    environment, as HYPRSTREAM_KEY.
    """
    from hyprstream.runtime import load_settings, open_adapters

    output, settings = session_of(ctx).output, load_settings()
    files = [_named_file(entry) for entry in upload or []]
    try:
        from hyprstream.runtime.warehouse.ingest import Ingest
        from hyprstream.runtime.warehouse.tenants import open_warehouses
        from hyprstream.runtime.warehouse.warehouse import Caller
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"SQL needs {error.name}, which is not installed",
            hint="Install it with `pip install 'hyprstream[flight]'`.",
        ) from error
    history = settings.sql_folder / "history"
    if host is not None:
        from hyprstream.flight.client import Server

        key = os.environ.get("HYPRSTREAM_KEY", "")
        server = Server(address=host, key=key, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key)
        _upload(output, files, server.upload)
        _serve(output, server.query, command, format, history)
        return
    me = Caller("this machine", can_write=True, can_manage=True)
    with open_adapters(settings) as adapters, open_warehouses(settings, adapters) as warehouses:
        warehouse = warehouses.of(me)

        def take(table: str, rows: Any) -> int:
            return warehouse.ingest(me, Ingest(table=table, if_exists="replace"), rows)

        _upload(output, files, take)
        _serve(output, lambda text: warehouse.query(me, text), command, format, history)


def _named_file(entry: str) -> tuple[str, Path]:
    table, is_there, file = entry.partition("=")
    if not (table and is_there and file):
        raise InvalidRequestError(f"--upload {entry!r}", hint="Write it as TABLE=FILE.")
    return table, Path(file)


def _upload(
    output: Output, files: Sequence[tuple[str, Path]], take: "Callable[[str, Any], int]"
) -> None:
    from hyprstream.runtime.warehouse.files import rows_of

    for table, file in files:
        with rows_of(file) as rows:
            output.done(f"{take(table, rows)} rows of {file} are the table {table}")


def _serve(
    output: Output,
    rows: "Rows",
    command: str | None,
    format: SqlFormat,  # noqa: A002
    history: Path,
) -> None:
    if format is SqlFormat.PARQUET and (command is None or sys.stdout.isatty()):
        raise InvalidRequestError(
            "Parquet is no text for a terminal, and holds one result",
            hint="Give the statement with -c, and write to a file: `> FILE`.",
        )
    if command is not None:
        _print(output, rows(command), format)
        return
    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    lines: Lines = TerminalLines("sql> ", history) if interactive else PipeLines()
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


def _print(output: Output, table: Any, format: SqlFormat) -> None:  # noqa: A002
    if format is SqlFormat.PARQUET:
        from hyprstream.runtime.warehouse.files import write_parquet

        write_parquet(table, sys.stdout.buffer)
        return
    rows: Sequence[Mapping[str, Any]] = table.to_pylist()
    if format is SqlFormat.CSV:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(map(_cell, row.values()) for row in rows)
        output.text(text.getvalue())
        return
    rows = [{name: _told(value) for name, value in row.items()} for row in rows]
    shown = [{name: "" if v is None else str(v) for name, v in row.items()} for row in rows]
    identifier = next(iter(rows[0]), "") if rows else ""
    output.table(rows, Format(format.value), identifier=identifier, shown=shown)
