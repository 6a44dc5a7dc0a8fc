"""Single values of a row of training data, checked as they are taken."""

import math
from collections.abc import Mapping, Sequence

from hyprstream.errors import InvalidRequestError

_ANSWERS = ("completion", "response", "answer")


def first_key(row: Mapping[str, object], keys: Sequence[str], *, otherwise: str) -> str:
    """Return the first of the keys that the row has."""
    return next((key for key in keys if key in row), otherwise)


def answer_key(row: Mapping[str, object]) -> str:
    """Return under which key the answer to a prompt is."""
    return first_key(row, _ANSWERS, otherwise=_ANSWERS[0])


def text_at(row: Mapping[str, object], key: str) -> str:
    """Return a text.

    Raises:
        InvalidRequestError: It is missing, or no text.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise InvalidRequestError(
            f"{key} is {'missing' if value is None else 'no text'}", hint="Give a text."
        )
    return value


def weight_of(row: Mapping[str, object]) -> float:
    """Return how much a row counts; 1 where it does not say.

    Raises:
        InvalidRequestError: The weight is no finite number above 0.
    """
    value = row.get("weight")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InvalidRequestError(
            f"weight is {ascii(value)[:60]}", hint="Make it a number above 0, or leave it out."
        )
    return float(value)
