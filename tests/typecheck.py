"""How the shape annotations are executed: as mypy reads them, an int is a float too."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check calls of `function`; one that returns `Self` is left to mypy.

    beartype understands `Self` only where it decorates the whole class, and the import hook
    decorates functions.
    """
    try:
        return _checked(function)
    except BeartypeDecorHintPep673Exception:
        return function
