"""Jinja for templates that strangers wrote: what they may reach, make and take.

Jinja's own sandbox keeps templates away from the interpreter, but lets them run for ever
and fill the memory. Three rules are added here.

1. A template calls only what is listed: methods of plain data, macros, a few functions.
2. Every text and container that it makes is measured in full and paid from one budget. What
   could make much of little (`*`, `%`, `replace`, `join`, `indent`, ...) is checked before.
   So no operation in C works on more than the budget, whatever a template builds.
3. Every loop step, call, filter, test and operator looks at the clock. Between two looks
   lies no more than one straight piece of the template, and its length is bounded.

Loops, literals, comparisons and slices have no hooks in Jinja; `template_syntax` wraps them
in filters, which are here. An environment serves one rendering, because it holds the budget.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.filters import FILTERS
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import (
    ImmutableSandboxedEnvironment,
    safe_range,
)
from jinja2.utils import Cycler, Joiner, Namespace, pass_context
from markupsafe import escape
from typing_extensions import override

from hyprstream.models.template_limits import PART_CHARS, Budget
from hyprstream.models.template_syntax import Generation, instrument
from hyprstream.models.template_values import (
    MAX_WIDTH,
    Each,
    TemplateNamespace,
    TextFormat,
    check_field,
)

_CONTAINERS = (list, tuple, dict)
_PRINTABLE = (str, int, float, type(None), Undefined, *_CONTAINERS)
_MAX_INT_BITS = 65_536
_MAX_STRFTIME_CHARS = 256
# A conversion of the % operator up to its width and precision.
_PERCENT_FIELD = re.compile(r"%((?:\([^)]*\))?[-#0 +]*[0-9*]*(?:\.[0-9*]*)?)")

_TEXT_METHODS = (
    *("capitalize", "casefold", "center", "count", "endswith", "find", "format", "index"),
    *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric"),
    *("isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition"),
    *("removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition"),
    *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title"),
    *("upper", "zfill"),
)
_LOOP_MEMBERS = (
    *("changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length"),
    *("nextitem", "previtem", "revindex", "revindex0"),
)
_MEMBERS: Mapping[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    Cycler: frozenset({"current", "next", "reset"}),
    LoopContext: frozenset(_LOOP_MEMBERS),
}
_FILTERS = (
    *("abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort"),
    *("first", "float", "groupby", "int", "items", "last", "length", "list", "lower", "map"),
    *("max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr"),
    *("slice", "sort", "string", "title", "trim", "truncate", "unique", "upper", "urlencode"),
    *("wordcount",),
)
# Filters and methods whose numbers are sizes, and those that make a list of a text.
_SIZED = frozenset({"batch", "center", "ljust", "rjust", "round", "slice", "zfill"})
_LISTING = frozenset(
    (
        *("batch", "groupby", "list", "rsplit", "slice", "sort", "split", "splitlines"),
        *("title", "unique", "wordcount"),
    )
)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Where one chat template is compiled, or rendered once.

    Args:
        budget: What it may cost.
        clock: What `strftime_now` shows.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, *, budget: Budget, clock: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        self.budget = budget
        self._clock = clock
        self.finalize = self._printable
        self.globals = {
            "range": safe_range,
            "dict": self._new_dict,
            "namespace": TemplateNamespace,
            "cycler": Cycler,
            "joiner": Joiner,
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
        }
        self._functions = tuple(self.globals.values())
        self.filters = {name: self._guarded(name) for name in _FILTERS} | {
            " concat": self._concat_values,
            " each": self._each,
            " made": self._admit,
            " slice": self._slice,
            " tick": self._ticked,
            "e": _escaped,
            "escape": _escaped,
            "format": self._format,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "safe": str,
            "sum": self._sum,
            "tojson": self._tojson,
        }

    # What Jinja asks its environment.

    @override
    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = instrument(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    @override
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (Namespace, Undefined)):
            return super().is_safe_attribute(obj, attr, value)
        fields = getattr(type(obj), "_fields", ())  # what groupby yields
        return attr in _MEMBERS.get(type(obj), fields)

    @override
    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        undefined = super().unsafe_undefined(obj, attribute)
        if attribute.startswith("_"):  # at once, even if it would print as nothing
            undefined._fail_with_undefined_error()
        return undefined

    @override
    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(value, BuiltinMethodType) and value.__name__ == "format":
            text = value.__self__
            return TextFormat(self, self.budget, text) if isinstance(text, str) else None
        return None

    @override
    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.budget.tick()
        if isinstance(obj, (BuiltinMethodType, MethodType)):
            owner, name = obj.__self__, obj.__name__
            if isinstance(owner, str):
                args = self._checked_args(owner, name, args)
            is_listed = name in _MEMBERS.get(type(owner), ())
        else:
            is_listed = isinstance(obj, (Macro, BlockReference, Joiner, Undefined, TextFormat))
        if isinstance(obj, LoopContext):  # one step down in a recursive loop
            args, is_listed = (self._each(args[0]), *args[1:]), True
        if not is_listed and not any(obj is function for function in self._functions):
            raise SecurityError(f"a {type(obj).__name__} is not for templates to call")
        if isinstance(obj, Macro):  # it makes lists of what it has no name for
            self.budget.pay(self.budget.measure([args, kwargs]))
        return self._admit(super().call(context, obj, *args, **kwargs))

    @override
    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 0))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        return self._admit(super().call_binop(context, operator, left, right))

    @override
    def concat(self, parts: Iterable[str]) -> str:
        """Join what a template, a macro or a block wrote."""
        paid = []
        for part in parts:
            self.budget.pay(len(part))
            paid.append(part)
        return "".join(paid)

    # What templates do. Their values are of any type; what is wrong fails by itself.

    def _printable(self, value: Any) -> Any:
        if not isinstance(value, _PRINTABLE):
            raise SecurityError(f"a {type(value).__name__} is not for templates to print")
        return value

    def _admit(self, value: Any) -> Any:
        if isinstance(value, (str, *_CONTAINERS)):
            self.budget.pay(self.budget.measure(value))
        return value

    def _ticked(self, value: Any) -> Any:
        self.budget.tick()
        return value

    def _paid_items(self, values: Any) -> Iterable[Any]:
        """Have lazy values paid one by one; those of containers are paid already."""
        if isinstance(values, _CONTAINERS):
            return values
        if isinstance(values, str):
            self.budget.require(PART_CHARS * len(values))
            return values
        return self._pay_each(values)

    def _pay_each(self, values: Any) -> Iterator[Any]:
        for value in values:
            self.budget.pay(PART_CHARS)
            yield value

    def _each(self, values: Any) -> Each:
        return Each(self._paid_items(values), self.budget.tick)

    def _slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return self._admit(value[start:stop:step])

    def _concat_values(self, values: Sequence[Any]) -> str:
        return self.concat(str(self._printable(value)) for value in values)

    def _new_dict(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*map(self._paid_items, args), **kwargs)

    def _strftime_now(self, form: Any) -> str:
        if len(form) > _MAX_STRFTIME_CHARS:
            raise SecurityError(f"a date format of {len(form)} characters")
        return self._clock().strftime(form)

    def _checked_args(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Check a call of a method of `text` before it makes too much."""
        if name == "join":
            return (self._joinable(text, *args),)
        if name == "replace":
            self._check_replace(text, *args)
        elif name in _LISTING:
            self.budget.require(PART_CHARS * len(text))
        elif name in _SIZED:
            _check_widths(args)
        return args

    def _guarded(self, name: str) -> Callable[..., Any]:
        """Make Jinja's filter `name` check what it is given and pay for what it makes."""
        original = FILTERS[name]
        at = 1 if hasattr(original, "jinja_pass_arg") else 0

        @functools.wraps(original)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.budget.tick()
            if name in _SIZED:
                _check_widths([*args[at + 1 :], *kwargs.values()])
            value = args[at]
            if isinstance(value, Iterator) or (name in _LISTING and isinstance(value, str)):
                value = self._paid_items(value)
            return self._admit(original(*args[:at], value, *args[at + 1 :], **kwargs))

        return guarded

    def _joinable(self, separator: str, values: Any) -> list[Any]:
        items = list(self._paid_items(values))
        self.budget.require(self.budget.measure(items) + len(separator) * len(items))
        return items

    @pass_context
    def _join(self, context: Context, value: Any, d: Any = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = self.call_filter("map", value, (), {"attribute": attribute}, context)
        items = self._joinable(str(d), value)
        return self.concat([str(d).join(str(self._printable(item)) for item in items)])

    @pass_context
    def _sum(self, context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        if attribute is not None:
            value = self.call_filter("map", value, (), {"attribute": attribute}, context)
        if not isinstance(start, (int, float)):
            raise SecurityError("the filter sum is for numbers")
        return sum(self._each(value), start)

    def _check_replace(self, text: str, old: Any, new: Any, count: Any = -1) -> None:
        num_hits = text.count(old) if count < 0 else min(count, text.count(old))
        self.budget.require(len(text) + num_hits * max(0, len(new) - len(old)))

    def _replace(self, value: Any, old: Any, new: Any, count: Any = None) -> str:
        text, num_hits = str(self._printable(value)), -1 if count is None else count
        self._check_replace(text, str(old), str(new), num_hits)
        replaced: str = self._admit(text.replace(str(old), str(new), num_hits))
        return replaced

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        for value, factor in ((left, right), (right, left)):
            if isinstance(value, (str, *_CONTAINERS)) and isinstance(factor, int):
                size = len(value) if isinstance(value, str) else self.budget.measure(value)
                self.budget.require(size * factor)

    def _check_format(self, form: str, values: Any) -> None:
        for field in _PERCENT_FIELD.finditer(form):
            check_field(field[1])
        self.budget.require(form.count("%") * (self.budget.measure(values) + MAX_WIDTH))

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        form = str(self._printable(value))
        self._check_format(form, [args, kwargs])
        formatted: str = self._admit(form % (kwargs or args))
        return formatted

    def _indent(
        self,
        value: Any,
        width: Any = 4,
        first: Any = False,  # noqa: FBT002  a filter's arguments are Jinja's
        blank: Any = False,  # noqa: FBT002
    ) -> str:
        text = str(self._printable(value))
        _check_widths([width])
        self.budget.require(PART_CHARS * len(text))
        margin = width if isinstance(width, str) else " " * width
        self.budget.require(len(text) + (len(text.splitlines()) + 1) * len(margin))
        indented: str = self._admit(FILTERS["indent"](text, margin, first, blank))
        return indented

    def _tojson(
        self,
        value: Any,
        ensure_ascii: Any = False,  # noqa: FBT002  so in transformers
        indent: Any = None,
        separators: Any = None,
        sort_keys: Any = False,  # noqa: FBT002
    ) -> str:
        """Write JSON as transformers does: without escapes for HTML."""
        _check_widths([indent, *map(len, separators or ())])
        margin = indent if isinstance(indent, str) else " " * (indent or 0)
        between = sum(map(len, separators or ()))
        self.budget.require(self.budget.measure([value], per_level=len(margin) + between))
        text: str = self._admit(
            json.dumps(
                value,
                ensure_ascii=bool(ensure_ascii),
                indent=indent,
                separators=separators,
                sort_keys=bool(sort_keys),
            )
        )
        return text


def _check_widths(widths: Iterable[Any]) -> None:
    for width in widths:
        if isinstance(width, int) and abs(width) > MAX_WIDTH:
            raise SecurityError(f"a width of {width} characters")


def _check_bits(num_bits: int) -> None:
    if num_bits > _MAX_INT_BITS:
        raise SecurityError(f"a number of {num_bits} bits")


def _escaped(value: Any) -> str:
    return str(escape(value))


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))
