"""Errors of ours as statuses of gRPC, without tracebacks.

pyarrow makes a status of ValueError, KeyError and NotImplementedError, and then sends the
traceback along, paths of files included (apache/arrow#34251). The text of it comes from
`traceback.format_exception`; for the three classes below, and only for them, that is
replaced.
"""

import logging
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import pyarrow.flight as fl

from hyprstream.errors import (
    AccessError,
    AuthenticationError,
    CorruptError,
    DeadlineExceededError,
    HyprstreamError,
    NotFoundError,
    QueryCancelledError,
    UnavailableError,
    UnsupportedError,
)

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class _StatusError(Exception):
    pass


class _InvalidArgumentError(_StatusError, ValueError):
    pass


class _NotFoundError(_StatusError, KeyError):
    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing has it since 3.12
        return str(self.args[0])


class _UnimplementedError(_StatusError, NotImplementedError):
    pass


_STATUSES: tuple[tuple[type[HyprstreamError], Callable[[str], Exception]], ...] = (
    (NotFoundError, _NotFoundError),
    (AuthenticationError, fl.FlightUnauthenticatedError),
    (AccessError, fl.FlightUnauthorizedError),
    (UnsupportedError, _UnimplementedError),
    (DeadlineExceededError, fl.FlightTimedOutError),
    (QueryCancelledError, fl.FlightCancelledError),
    (UnavailableError, fl.FlightUnavailableError),
    (CorruptError, fl.FlightInternalError),
    (HyprstreamError, _InvalidArgumentError),
)


def status_of(error: Exception) -> Exception:
    """Return what pyarrow sends as the right status.

    What is not an error of ours is a bug: it is logged, and the client is told no more.
    """
    if isinstance(error, (fl.FlightError, _StatusError)):
        return error
    if isinstance(error, HyprstreamError):
        text = f"{error} [{error.code}]" + (f" {error.hint}" if error.hint else "")
        for kind, make in _STATUSES:
            if isinstance(error, kind):
                status: Exception = make(text)
                return status
    log.error("a Flight call failed", exc_info=error)
    internal: Exception = fl.FlightInternalError(f"internal error ({type(error).__name__})")
    return internal


def guarded(call: Callable[P, R]) -> Callable[P, R]:
    """Let a method of the service raise what pyarrow sends as the right status."""

    def guard(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # whatever it is, the client gets a status
            status = status_of(error)
        raise status from None

    return guard


def hide_tracebacks() -> None:
    """Keep pyarrow from sending the tracebacks of this module's errors. Once is enough."""
    original = traceback.format_exception
    if getattr(original, "hides_statuses", False):
        return

    def format_exception(*args: Any, **kwargs: Any) -> list[str]:
        if any(isinstance(part, _StatusError) for part in args):
            return []
        return original(*args, **kwargs)

    format_exception.hides_statuses = True  # type: ignore[attr-defined]  # found above
    traceback.format_exception = format_exception
