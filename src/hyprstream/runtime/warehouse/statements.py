"""What a statement is, and who may run it: everything not allowed here is refused.

The database's own lock (`database.py`) is the first line; this one names what is left.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from hyprstream.errors import InvalidSqlError, SqlNotAllowedError
from hyprstream.runtime.warehouse.failures import translated

_READS = frozenset({"SELECT", "EXPLAIN", "RELATION", "LOGICAL_PLAN"})
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE_INTO", "CREATE", "ALTER", "DROP"})
# Functions that do something besides telling; `query` and its kin run text as a statement.
_ACTING = frozenset(
    {
        *("add_grammar_extension", "remove_grammar_extension", "register_external_resource"),
        *("register_external_resource_type", "deregister_external_resource"),
        *("create_external_resource", "destroy_external_resource", "enable_logging"),
        *("disable_logging", "enable_profiling", "disable_profiling", "truncate_duckdb_logs"),
        *("checkpoint", "force_checkpoint", "write_log", "query", "json_execute_serialized_sql"),
        *("arrow_scan", "arrow_scan_dumb", "pandas_scan", "python_arrow_scan"),
        *("python_map_function", "duckdb_logs", "duckdb_secrets", "which_secret", "seq_scan"),
        *("query_table", "copy_database", "import_database"),
    }
)
# Functions and views that tell where things lie on this machine, or what others are doing.
_TELLING = frozenset(
    {
        *("duckdb_databases", "duckdb_settings", "duckdb_extensions", "current_setting"),
        *("duckdb_extension_repositories", "duckdb_temporary_files", "duckdb_live_query_metrics"),
        *("duckdb_external_file_cache", "duckdb_external_resources", "duckdb_log_contexts"),
        *("duckdb_prepared_statements", "pragma_database_list", "database_list", "getenv"),
        "pg_settings",
    }
)
_QUERY_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_ANALYSES = re.compile(r"\s*explain\s*(\(\s*)?analy[sz]e", re.IGNORECASE)
_LIVE = re.compile(r'(?<![\w"])"?live"?\s*\.', re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+")
_MOST_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """One statement.

    Attributes:
        statement: As the database parsed it.
        text: What it says.
        kind: The database's name of its kind; a query that changes something is an INSERT.
        parameters: Names of its parameters, in the order of their numbers.
        words: All words of it, in small letters: a superset of the tables it names.
    """

    statement: Any
    text: str
    kind: str
    parameters: tuple[str, ...]
    words: frozenset[str]

    @property
    def reads(self) -> bool:
        """Tell whether it changes nothing."""
        return self.kind in _READS

    @property
    def numbered(self) -> bool:
        """Tell whether its parameters are told apart by their place."""
        return bool(self.parameters) and self.parameters[0].isdigit()


def parse(cursor: Any, text: str, *, can_write: bool) -> Parsed:
    """Parse a statement and find out whether the caller may run it.

    Raises:
        InvalidSqlError: It is none, or more than one.
        SqlNotAllowedError: Nobody may run it here, or not this caller.
    """
    if len(text) > _MOST_CHARACTERS:
        raise InvalidSqlError(f"the statement has {len(text)} characters, the limit is 1048576")
    if "\0" in text or _SURROGATE.search(text):
        raise InvalidSqlError("the statement holds a character that is none")
    with translated():
        found = cursor.extract_statements(text)
    if len(found) != 1:
        raise InvalidSqlError(
            f"one statement is wanted, these are {len(found)}", hint="Send them one by one."
        )
    statement = found[0]
    words = frozenset(word.lower() for word in _WORD.findall(text))
    kind = _kind(cursor, statement, words)
    _check(kind, text, can_write=can_write)
    names = sorted(statement.named_parameters, key=lambda n: (0, int(n)) if n.isdigit() else (1, n))
    return Parsed(statement=statement, text=text, kind=kind, parameters=tuple(names), words=words)


def _kind(cursor: Any, statement: Any, words: frozenset[str]) -> str:
    """Return what a statement does; `WITH x AS (INSERT ..) SELECT` inserts when it is bound."""
    kind: str = statement.type.name
    if kind != "SELECT":
        _check_names(_called(statement.query, words) | words & _TELLING)
        if kind == "DROP" and "drop" not in words:
            return "DEALLOCATE"
        return "INSERT" if kind == "EXPLAIN" and _ANALYSES.match(statement.query) else kind
    with translated():
        row = cursor.execute("SELECT json_serialize_sql($1)", [statement.query]).fetchall()
    tree = json.loads(row[0][0])
    if tree.get("error"):
        _check_names(words)
        return "INSERT"  # it cannot be looked into: take the worst
    nodes, functions, tables = set[str](), set[str](), set[str]()
    _collect(tree, nodes, functions, tables)
    _check_names(functions | tables & _TELLING)
    return "SELECT" if nodes <= _QUERY_NODES else "INSERT"


def _called(text: str, words: frozenset[str]) -> set[str]:
    """Return the functions that a statement may call, and perhaps some that it does not."""
    named = words & _ACTING
    if "/*" in text or "--" in text:
        return set(named)  # a comment may stand between a name and what it is called with
    return {name for name in named if re.search(rf'{name}"?\s*\(', text, re.IGNORECASE)}


def _collect(root: Any, nodes: set[str], functions: set[str], tables: set[str]) -> None:
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str) and kind.endswith("_NODE"):
                nodes.add(kind)
            name = part.get("function_name")
            if isinstance(name, str):
                functions.add(name.lower())
            table = part.get("table_name")
            if isinstance(table, str):
                tables.add(table.lower())
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_names(names: set[str] | frozenset[str]) -> None:
    if found := sorted(names & (_ACTING | _TELLING)):
        raise SqlNotAllowedError(f"{found[0]!r} may not be used here")


def _check(kind: str, text: str, *, can_write: bool) -> None:
    if kind not in _READS | _WRITES:
        raise SqlNotAllowedError(f"{kind} statements may not be run here")
    if kind in _READS:
        return
    if not can_write:
        raise SqlNotAllowedError(
            f"{kind} statements need leave to write", hint="Use a key with the scope for it."
        )
    if kind in {"CREATE", "ALTER", "DROP"} and _LIVE.search(text):
        raise SqlNotAllowedError("what the catalog 'live' shows cannot be changed by statements")
