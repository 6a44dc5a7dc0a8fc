"""Values that a chat template meets in place of Jinja's own, which trust it more."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from typing_extensions import override

from hyprstream.models.template_limits import Budget

MAX_WIDTH = 999  # characters of a padded field
_LARGE_WIDTH = re.compile(r"\*|[0-9]{4,}")


def check_field(spec: str) -> None:
    """Refuse a field of a format whose width or precision is large, or comes from elsewhere."""
    if _LARGE_WIDTH.search(spec):
        raise SecurityError(f"a field of the format {spec[:40]!r} is too wide")


class TemplateNamespace(Namespace):
    """Jinja's namespace, without the names through which the interpreter is reached."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # names may be `self`
        self, *given = args
        names = dict(*given, **kwargs)
        for name in names:
            _check_public(name)
        Namespace.__init__(self, names)

    @override
    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


class Each(list[Any]):
    """The items of a loop, with a look at the clock at each."""

    def __init__(self, items: Iterable[Any], tick: Callable[[], None]) -> None:
        super().__init__(items)
        self._tick = tick

    @override
    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self._tick()
            yield item


class TextFormat:
    """The method `format` of one text: sandboxed, without wide fields, within the budget."""

    def __init__(self, environment: SandboxedEnvironment, budget: Budget, text: str) -> None:
        self._environment = environment
        self._budget = budget
        self._text = text

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """Format the text."""
        size = self._budget.measure([args, kwargs]) + MAX_WIDTH
        self._budget.require(self._text.count("{") * size)
        return _NarrowFormatter(self._environment).vformat(self._text, args, kwargs)


class _NarrowFormatter(SandboxedFormatter):
    @override
    def format_field(self, value: Any, format_spec: str) -> Any:
        check_field(format_spec)
        return super().format_field(value, format_spec)


def _check_public(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}")
