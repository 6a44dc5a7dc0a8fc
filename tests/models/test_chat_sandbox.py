"""What untrusted templates may not reach, make or take."""

import itertools
import time
from datetime import UTC, datetime

import pytest

from hyprstream.errors import ChatTemplateError
from hyprstream.models.chat import ChatTemplate
from hyprstream.models.template_limits import Budget, BudgetError, TemplateLimits

CHAT = [{"role": "user", "content": "Hi"}]
# CVE-2024-34359, as it was published against llama-cpp-python.
PUBLISHED = (
    "{% for x in ().__class__.__base__.__subclasses__() %}"
    '{% if "warning" in x.__name__ %}'
    "{{x()._module.__builtins__['__import__']('os').popen(\"touch MARK\")}}"
    "{%endif%}{% endfor %}"
)


def _refusal(source: str, **limits: float) -> str:
    settings = TemplateLimits(**limits)  # type: ignore[arg-type]  # numbers of either kind
    with pytest.raises(ChatTemplateError) as raised:
        ChatTemplate(source, {}, limits=settings).render(CHAT, tools=[])
    assert raised.value.hint
    return str(raised.value)


def test_published_exploit_is_refused_and_does_nothing(tmp_path):
    mark = tmp_path / "mark"
    assert "tried what templates may not" in _refusal(PUBLISHED.replace("MARK", str(mark)))
    assert not mark.exists()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ().__class__ }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0]['__class__'] }}",
        "{{ ''['__class__'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0[__class__]}'.format('') }}",
        "{{ '{x.__init__.__globals__}'.format(x=cycler) }}",
        "{{ '{0.__class__}'.format_map({'0': 1}) }}",
        "{{ ('{0.__class__}' | attr('format'))(1) }}",
        "{{ '' | attr('__class__') }}",
        "{{ '' | attr('\\x5f_class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ messages | map('attr', '__class__') | list }}",
        "{{ messages | groupby('__class__') | list }}",
        "{{ messages | sort(attribute='__class__') }}",
        "{{ messages | selectattr('__class__') | list }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner('x').__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{{ namespace({'_Namespace__attrs': 1}) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__func__.__globals__ }}",
        "{{ strftime_now.__self__.filters }}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "{% for x in [1] %}{{ loop._iterable }}{% endfor %}",
        "{{ ''.join.__self__.__class__ }}",
        "{{ [].append(1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ messages[0].clear() }}",
        "{{ (1).to_bytes(9, 'big') }}",
        "{{ ''.encode() }}",
        "{{ ''.translate({}) }}",
        "{{ (1).__add__(2) }}",
        "{{ messages() }}",
        "{{ self }}",
        "{{ namespace }}",
        "{{ cycler('a') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends 'x' %}",
        "{% autoescape true %}{% endautoescape %}",
        "{{ caller.__globals__ }}",
        "{{ undefined() }}",
        "{{ messages | random }}",
    ],
)
def test_way_out_of_the_sandbox_is_closed(source):
    assert "the chat template" in _refusal(source)


def _grown(start: str, step: str) -> str:
    """Let a value grow by the same step sixty times."""
    loop = "{% for i in range(60) %}" + step + "{% endfor %}"
    return "{% set ns = namespace(x=" + start + ") %}" + loop


TINY = {"made_chars": 100_000, "seconds": 0.5}


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ (1, 2) * 10 ** 9 }}",
        "{{ 2 ** (10 ** 9) }}",
        "{{ 10 ** 1000 * 10 ** 10000 * 10 ** 10000 }}",
        _grown("7", "{% set ns.x = ns.x * ns.x %}"),
        "{{ '%1000000000d' % 1 }}",
        "{{ '%.1000000000f' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%(a)1000000000s' % {'a': 1} }}",
        "{{ '%1000000000s' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=1000000000) }}",
        "{{ ('{0:999}' * 9000).format(1) }}",
        "{{ ('%(a)999d' * 9000) % {'a': 1} }}",
        "{{ 'a'.center(10 ** 9) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a'.rjust(10 ** 9) }}",
        "{{ 'a'.zfill(10 ** 9) }}",
        "{{ 'a'.expandtabs(10 ** 9) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ 'a' | center(width=10 ** 9) }}",
        "{{ 'a\nb' | indent(10 ** 9) }}",
        "{{ ('a\n' * 9000) | indent(1000) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        "{{ ([1] * 900) | tojson(indent=1000) }}",
        "{{ [1] | tojson(separators=(',' * 20000, ':')) }}",
        "{{ [1] | batch(10 ** 9, 'x') | list }}",
        "{{ [1] | slice(10 ** 9) | list }}",
        "{{ 1.5 | round(10 ** 9, 'ceil') }}",
        "{{ range(10 ** 9) | list }}",
        "{{ range(99999) | list }}",
        "{{ range(99999) | map('string') | list }}",
        "{{ ('a' * 9000) | list }}",
        "{{ ('a' * 9000) | select | list }}",
        "{{ ('a' * 9000) | map('upper') | join }}",
        "{{ ('a' * 9000).split('a') }}",
        "{{ ('a' * 9000).replace('a', 'b' * 9000) }}",
        "{{ ('a' * 9000) | replace('a', 'b' * 9000) }}",
        "{{ ('a' * 9000).replace('', 'b' * 9000) }}",
        "{{ ('a' * 9000).join([''] * 999) }}",
        "{{ [''] * 999 | join('a' * 9000) }}",
        "{{ ([''] * 999) | join('a' * 9000) }}",
        "{{ ([{'a': 'b' * 900}] * 99) | map(attribute='a') | join(attribute='x') }}",
        "{{ ('%s' * 99) % (('a' * 9000,) * 99) }}",
        "{{ ('%(a)s' * 99) % {'a': 'a' * 9000} }}",
        "{{ ('{0}' * 99).format('a' * 9000) }}",
        "{{ cycler(*(('a' * 9000) | select)) }}",
        "{{ dict((range(99999) | batch(2))) }}",
        "{{ strftime_now('%Y' * 1000) }}",
        "{{ [[1]] | sum(start=[]) }}",
        _grown("'ab'", "{% set ns.x = ns.x ~ ns.x %}"),
        _grown("'ab'", "{% set ns.x = ns.x + ns.x %}"),
        _grown("'ab'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        _grown("[1]", "{% set ns.x = [ns.x, ns.x] %}"),
        _grown("[1]", "{% set ns.x = (ns.x, ns.x) %}"),
        _grown("1", "{% set ns.x = {1: ns.x, 2: ns.x} %}"),
        _grown("1", "{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
        "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% endif %}{% endmacro %}"
        "{{ f(60, 1) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
        "{{ " + "-" * 9000 + "1 }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{{ 1" + "0" * 6000 + " }}",
    ],
)
def test_template_that_would_take_or_make_too_much_is_stopped_soon(source):
    started = time.monotonic()
    assert "the chat template" in _refusal(source, **TINY)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in 'abc' %}{% for b in 'abc' %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% endmacro %}" + "{{ f() }}" * 20,
        "{{ x | upper }}" * 20,
        "{{ x == 1 }}" * 20,
        "{% if x is defined %}{% endif %}" * 20,
        "{{ 'x'[1:] }}" * 20,
        "{{ 1 + 1 }}" * 20,
        "{{ [1] }}" * 20,
    ],
)
def test_clock_is_looked_at_all_along(source):
    seconds = itertools.count()
    with pytest.raises(ChatTemplateError, match="longer than 8 s"):
        ChatTemplate(
            source, {}, timer=lambda: next(seconds), limits=TemplateLimits(seconds=8)
        ).render(CHAT)


def test_every_rendering_has_its_own_budget():
    template = ChatTemplate("{{ 'a' * 600 }}", {}, limits=TemplateLimits(made_chars=1500))
    assert [len(template.render(CHAT)) for _ in range(5)] == [600] * 5


def test_output_longer_than_the_limit_is_refused():
    assert "writes 2000 characters" in _refusal("{{ 'a' * 2000 }}", output_chars=1999)


def test_source_longer_than_the_limit_is_refused():
    assert "more than 100" in _refusal("a" * 101, source_chars=100)


def test_long_messages_of_errors_are_cut():
    assert len(_refusal("{{ raise_exception('x' * 100000) }}")) < 400


def test_date_format_cannot_ask_for_much():
    clock = lambda: datetime(2024, 7, 26, tzinfo=UTC)  # noqa: E731
    template = ChatTemplate("{{ strftime_now('%99999999d') }}", {}, clock=clock)
    assert len(template.render(CHAT)) < 100_000


def test_what_a_value_holds_is_counted_as_often_as_it_is_held():
    budget = Budget(TemplateLimits(made_chars=10_000), lambda: 0.0)
    inner = ["a" * 100]
    once = budget.measure(inner)
    assert budget.measure([inner, inner, {"k": inner}]) > 3 * once
    with pytest.raises(BudgetError, match="more than 10000"):
        budget.measure([inner] * 2000)
