"""The database: one DuckDB instance, locked before anybody's statement reaches it.

It has two catalogs: `hyprstream`, the tables of users, in a file; and `live`, in memory, what
the program has. No file but that one, no network, no extension; bounded memory, threads and
time. Every caller has a cursor of their own.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from hyprstream.errors import UnavailableError
from hyprstream.files import storage
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.failures import translated

CATALOG = "hyprstream"
LIVE = "live"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function of ours, which statements may call.

    Attributes:
        name: What it is called inside; macros give it a name for users.
        call: Takes Arrow arrays, returns one.
        takes: SQL types of its arguments.
        returns: SQL type of its result.
    """

    name: str
    call: Callable[..., pa.Array]
    takes: Sequence[str]
    returns: str


class Database:
    """The instance. Safe to use from any thread; `close` it at the end."""

    def __init__(self, file: Path | None, config: SqlConfig, functions: Sequence[Function]) -> None:
        """Open the database, or make one.

        Args:
            file: Of the tables of users; None keeps them in memory.
            config: Bounds.
            functions: Functions of ours.

        Raises:
            UnavailableError: Another process has the file, or it cannot be used.
        """
        self._turn = threading.Lock()
        limits = {"threads": config.threads, "memory_limit": f"{config.memory_bytes}B"}
        self._root = duckdb.connect(":memory:", config=limits)
        try:
            self._attach(file)
            for function in functions:
                self._root.create_function(
                    *(function.name, function.call, list(function.takes), function.returns),
                    type="arrow",
                    side_effects=False,
                )
            self._lock(config)
        except BaseException:
            self._root.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        with self._turn:
            self._root.close()

    def cursor(self, schema: str = "main") -> Any:
        """Return a new connection; unqualified names are looked for in both catalogs."""
        with self._turn, translated():
            cursor = self._root.cursor()
        path = f'{CATALOG}."{schema}",{LIVE}.main,{LIVE}.vectors'
        cursor.execute("SET search_path = '" + path.replace("'", "''") + "'")
        return cursor

    def define(self, statement: str) -> None:
        """Run a statement of ours."""
        with self._turn, translated():
            self._root.execute(statement)

    def show(self, schema: str, name: str, table: pa.Table) -> None:
        """Let a table of the catalog `live` be `table` from now on; queries that run go on."""
        with self._turn, translated():
            self._root.execute(f"USE {LIVE}.{schema}")
            self._root.from_arrow(table).create_view(name, replace=True)

    def hide(self, schema: str, name: str) -> None:
        """Take a table of the catalog `live` away."""
        with self._turn, translated():
            self._root.execute(f'DROP VIEW IF EXISTS {LIVE}.{schema}."{name}"')

    def _attach(self, file: Path | None) -> None:
        path = ":memory:"
        if file is not None:
            with storage(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
            path = str(file).replace("'", "''")
        try:
            self._root.execute(f"ATTACH '{path}' AS {CATALOG}")
        except duckdb.Error as error:
            raise UnavailableError(
                f"the tables in {file} cannot be opened: {str(error).splitlines()[0]}",
                hint="If a server has them, ask it: `hyprstream sql --host`.",
            ) from error
        self._root.execute(f"ATTACH ':memory:' AS {LIVE}; CREATE SCHEMA {LIVE}.vectors")

    def _lock(self, config: SqlConfig) -> None:
        settings = {
            "TimeZone": "'UTC'",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",  # or SQL reads Python's variables
            "temp_directory": "''",
            "enable_external_access": "false",
            "max_execution_time": str(round(config.timeout_s * 1000)),
            "lock_configuration": "true",
        }
        for name, value in settings.items():
            self._root.execute(f"SET GLOBAL {name} = {value}")
