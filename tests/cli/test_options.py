from dataclasses import dataclass, fields
from typing import Any

import pytest
import typer

from hyprstream.cli.options import SamplingOptions, grouped, parse_sampling
from hyprstream.engine.request import Grammar, SamplingParams
from hyprstream.errors import InvalidRequestError


def test_every_sampling_parameter_is_an_option():
    options = {field.name for field in fields(SamplingOptions)}
    parameters = {field.name for field in fields(SamplingParams)}
    grammars = {"json_schema", "regex", "lark"}
    assert options - {"stop_token_id"} - grammars == parameters - {"stop_token_ids", "grammar"}


@pytest.mark.parametrize("kind", ["json_schema", "lark"])
def test_a_grammar_is_text_or_a_file(kind, tmp_path):
    (tmp_path / "grammar").write_text("{}")
    for text in ("{}", f"@{tmp_path / 'grammar'}"):
        given: dict[str, Any] = {kind: text}
        options = SamplingOptions(**given)
        assert options.overrides() == {"grammar": Grammar(kind=kind, text="{}")}


def test_a_pattern_may_begin_with_an_at_sign():
    assert SamplingOptions(regex="@x").overrides() == {"grammar": Grammar(kind="regex", text="@x")}


def test_two_grammars_are_refused():
    with pytest.raises(InvalidRequestError, match="two grammars"):
        SamplingOptions(regex="a", lark='start: "a"').overrides()


def test_a_grammar_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"none\.json"):
        SamplingOptions(json_schema=f"@{tmp_path / 'none.json'}").overrides()


def test_options_that_were_not_given_leave_the_model_its_defaults():
    assert SamplingOptions().overrides() == {}


def test_zero_and_false_are_given_values():
    assert SamplingOptions(temperature=0.0, ignore_eos=False).overrides() == {
        "temperature": 0.0,
        "ignore_eos": False,
    }


def test_repeatable_options_become_what_sampling_params_takes():
    options = SamplingOptions(
        stop=["a", "b"], stop_token_id=[1, 2], logit_bias=["3=-100", "4=0.5", "3=1"]
    )
    assert options.overrides() == {
        "stop": ("a", "b"),
        "stop_token_ids": (1, 2),
        "logit_bias": {3: 1.0, 4: 0.5},
    }
    SamplingParams(**options.overrides())


@pytest.mark.parametrize("text", ["", "3", "=1", "a=1", "3=b", "3=1=2", "1.5=2"])
def test_a_logit_bias_that_is_none_is_refused_by_its_text(text):
    with pytest.raises(InvalidRequestError, match="ID=VALUE") as caught:
        SamplingOptions(logit_bias=[text]).overrides()
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "overrides"),
    [
        ("temperature", "0.2", {"temperature": 0.2}),
        ("max-tokens", "12", {"max_tokens": 12}),
        ("ignore_eos", "Yes", {"ignore_eos": True}),
        ("stop", "END OF IT", {"stop": ("END OF IT",)}),
        ("stop_token_id", "7", {"stop_token_ids": (7,)}),
        ("logit_bias", "7=1", {"logit_bias": {7: 1.0}}),
    ],
)
def test_a_parameter_is_read_by_its_type(name, text, overrides):
    assert parse_sampling(name, text) == overrides


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("temperature", "warm", "temperature takes a number."),
        ("seed", "1.5", "seed takes a whole number."),
        ("ignore_eos", "maybe", "ignore_eos takes true or false."),
        ("colour", "red", "There are: max_tokens, "),
    ],
)
def test_a_parameter_that_cannot_be_read_says_what_it_takes(name, text, hint):
    with pytest.raises(InvalidRequestError) as caught:
        parse_sampling(name, text)
    assert caught.value.hint.startswith(hint)


def test_a_group_becomes_options_and_comes_back_as_a_group(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Size:
        width: int = 1
        height: int = 2

    seen = []

    @grouped
    def draw(name: str, size: Size) -> None:
        seen.append((name, size))

    app = typer.Typer()
    app.command()(draw)
    app(["box", "--height", "5"], standalone_mode=False)
    assert seen == [("box", Size(width=1, height=5))]
    assert capsys.readouterr().out == ""
