"""Errors of the database, as ours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from hyprstream import errors
from hyprstream.errors import (
    ConcurrentChangeError,
    DeadlineExceededError,
    HyprstreamError,
    InvalidSqlError,
    QueryCancelledError,
    SqlNotAllowedError,
    TableExistsError,
    TableNotFoundError,
    UnavailableError,
    UnsupportedError,
)

_OF_FUNCTION = "Python exception occurred while executing the UDF: "


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the database raises in the block into errors of ours.

    Raises:
        HyprstreamError: Whatever stands against the statement.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _translated(error) from error
    except RuntimeError as error:  # of DuckDB's binding, where a stream is read
        if "Error" not in str(error):
            raise
        raise _translated(error) from error


def _translated(error: Exception) -> HyprstreamError:
    text = str(error).partition("\n\nStack Trace")[0].strip()
    if "file system operations are disabled" in text or "extensions/" in text:
        return SqlNotAllowedError("statements reach no files")  # the text may name some of ours
    if _OF_FUNCTION in text:
        return _of_function(text.partition(_OF_FUNCTION)[2])
    for sign, kind in _SIGNS:
        if sign in text[:80]:
            return kind(text.splitlines()[0])
    if "execution time" in text:
        return DeadlineExceededError(text, hint="Ask for less, or raise sql.timeout_s.")
    if isinstance(error, duckdb.CatalogException):
        for sign, kind in _NAMES.items():
            if sign in text:
                return kind(text)
    return InvalidSqlError(text)


_SIGNS: tuple[tuple[str, type[HyprstreamError]], ...] = (
    ("Permission Error", SqlNotAllowedError),
    ("Not implemented Error", UnsupportedError),
    ("Out of Memory Error", UnavailableError),
    ("TransactionContext Error: Conflict", ConcurrentChangeError),
    ("Conflict on", ConcurrentChangeError),
    ("INTERRUPT Error: Interrupted", QueryCancelledError),
)
_NAMES: Mapping[str, type[HyprstreamError]] = {
    "does not exist": TableNotFoundError,
    "already exists": TableExistsError,
}


def _of_function(text: str) -> HyprstreamError:
    """Return the error of ours that a function of ours raised, or else what there is of it."""
    name, _, message = text.partition(": ")
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, HyprstreamError)):
        return InvalidSqlError(f"a function failed: {text}")
    # A leaf may want facts that are lost here; what the caller can do is said by its branch.
    branch = kind.__mro__[kind.__mro__.index(HyprstreamError) - 1]
    assert issubclass(branch, HyprstreamError), "every error has a branch"
    return branch(message)
