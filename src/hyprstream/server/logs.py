"""What the process writes to stderr: lines for people, or one JSON object each for programs.

Prompts, answers and keys are in no message. Lines of JSON name no folder either: of an error
they have its type and the line of this program where it was raised, not what it says.
"""

import json
import logging
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typing_extensions import override

from hyprstream.runtime.server_config import LogFormat
from hyprstream.server.errors import without_paths

FIELDS = ("request_id", "method", "route", "status", "seconds")
"""What a record may have besides its message."""

_PACKAGE = Path(__file__).parents[1]


class JsonLines(logging.Formatter):
    """Writes records as JSON."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_paths(record.getMessage()),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line |= {"error": type(error).__name__, "raised_at": _place(error)}
        return json.dumps(line, default=str)


def start_logging(form: LogFormat) -> None:
    """Send what is logged to stderr."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonLines())
    else:
        text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def told(**fields: object) -> Mapping[str, object]:
    """Return fields of a record, for `extra` of a call of the log."""
    assert fields.keys() <= set(FIELDS), "a field that nobody writes"
    return fields


def _place(error: BaseException) -> str:
    """Name the innermost line of this program, as `server/app.py:12`."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(_PACKAGE):
            return f"{file.relative_to(_PACKAGE)}:{frame.lineno}"
    return "elsewhere"
