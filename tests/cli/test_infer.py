import io
import json
import sys

import pytest
from typing_extensions import override

from hyprstream.engine.request import Grammar
from tests.cli.fakes import DEFAULT_REF


def test_the_answer_goes_to_stdout_and_nothing_to_stderr(command_line):
    result = command_line("infer", "fake", "--prompt", "hi there")
    assert (result.code, result.out, result.err) == (0, "echo: hi there \n", "")


def test_the_answer_is_printed_as_it_is_made(command_line, monkeypatch):
    written = []

    class Recorder(io.TextIOWrapper):
        @override
        def write(self, text):
            written.append(text)
            return len(text)

    # capsys gives stdout back, so the recorder is put there when the command runs
    recorder = Recorder(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", recorder)
    command_line("infer", "fake", "--prompt", "a b")
    assert written == ["echo: ", "a ", "b ", "\n"]


def test_no_stream_prints_the_answer_at_its_end(command_line):
    assert command_line("infer", "fake", "-p", "hi", "--no-stream").out == "echo: hi \n"


def test_a_model_with_a_template_is_asked_as_in_a_chat(command_line, runtime):
    command_line("infer", "fake", "--prompt", "hi", "--system", "be brief")
    assert runtime.asked == [
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    ]


def test_raw_continues_the_text(command_line, runtime):
    assert command_line("infer", "fake", "--prompt", "once", "--raw").out.strip().endswith("once")
    assert runtime.asked == ["once"]


def test_a_model_without_a_template_continues_the_text(command_line, runtime):
    command_line("infer", "plain", "--prompt", "once")
    assert runtime.asked == ["once"]


def test_without_a_model_the_settings_name_it(command_line, runtime):
    command_line("infer", "--prompt", "hi")
    assert [loaded["ref"] for loaded in runtime.loaded] == [DEFAULT_REF]


def test_json_is_one_object_with_text_usage_timings_and_log_probabilities(command_line):
    result = command_line(
        "infer", "fake", "-p", "hi", "--format", "json", "--logprobs", "2", "--seed", "5"
    )
    token = {"token": "<7>", "token_id": 7, "logprob": -0.5}
    top = [token, {"token": "<8>", "token_id": 8, "logprob": -1.5}]
    assert json.loads(result.out) == {
        "model": "fake",
        "adapter": None,
        "text": "echo: hi ",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "timings": {
            "load_s": 0.25,
            "prompt_s": 0.5,
            "generate_s": 2.0,
            "prompt_tokens_per_s": 6.0,
            "tokens_per_s": 1.5,
        },
        "seed": 5,
        "logprobs": [
            {"token": "echo: ", "token_id": 7, "logprob": -0.5, "top": top},
            {"token": "hi ", "token_id": 7, "logprob": -0.5, "top": top},
        ],
    }


def test_json_without_logprobs_says_so(command_line):
    assert json.loads(command_line("infer", "-p", "x", "--format", "json").out)["logprobs"] is None


def test_every_sampling_option_reaches_the_model(command_line, runtime):
    options = (
        "--max-tokens 9 --min-tokens 2 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 "
        "--typical-p 0.8 --repetition-penalty 1.1 --presence-penalty 0.2 --frequency-penalty 0.3 "
        "--logit-bias 5=-1 --logit-bias 6=2 --seed 7 --stop A --stop B --stop-token-id 4 "
        "--ignore-eos --logprobs 1 --regex a+"
    )
    command_line("infer", "fake", "--prompt", "hi", *options.split())
    [params] = runtime.params
    assert {name: getattr(params, name) for name in params.__slots__} == {
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {5: -1.0, 6: 2.0},
        "seed": 7,
        "stop": ("A", "B"),
        "stop_token_ids": (4,),
        "ignore_eos": True,
        "logprobs": 1,
        "grammar": Grammar(kind="regex", text="a+"),
    }


def test_loading_options_reach_the_model(command_line, runtime):
    options = "--device cpu --dtype float32 --quantize int8 --context 512 --threads 3"
    command_line("infer", "fake", "--prompt", "hi", *options.split())
    [loaded] = runtime.loaded
    wanted = {"device": "cpu", "dtype": "float32", "quantize": "int8", "context": 512}
    assert {name: loaded[name] for name in wanted} == wanted
    assert runtime.threads == [3]


def test_the_prompt_comes_from_a_file(command_line, runtime, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("caf\u00e9\nau lait", encoding="utf-8")
    command_line("infer", "plain", "--input-file", str(file))
    assert runtime.asked == ["caf\u00e9\nau lait"]


@pytest.mark.parametrize("options", [(), ("--input-file", "-")])
def test_the_prompt_comes_from_a_pipe(command_line, runtime, options):
    command_line("infer", "plain", *options, stdin="from a pipe")
    assert runtime.asked == ["from a pipe"]


def test_a_given_prompt_leaves_the_pipe_alone(command_line, runtime):
    command_line("infer", "plain", "--prompt", "given", stdin="from a pipe")
    assert runtime.asked == ["given"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "a", "--input-file", "b"), "--prompt and --input-file both give a prompt"),
        (("--prompt", "a", "--raw", "--system", "b"), "--system needs the chat template"),
        (("--prompt", "a", "--temperature", "-1"), "temperature is -1.0"),
        (("--prompt", "a", "--logit-bias", "x"), "the logit bias 'x' is not ID=VALUE"),
        (("--input-file", "/no/such/file"), "/no/such/file cannot be read: No such file"),
        (("--prompt", "a\udcff"), "--prompt is not UTF-8 text"),
        (("--prompt", "a", "--stop", "a\udcff"), "--stop is not UTF-8 text"),
        (("--input-file", "/"), "/ cannot be read: Is a directory"),
    ],
)
def test_nonsense_is_refused_before_a_model_is_loaded(command_line, runtime, arguments, message):
    result = command_line("infer", "fake", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {message}")
    assert "\nhint: " in result.err
    assert runtime.loaded == []


def test_text_that_is_not_utf8_is_refused_by_its_byte(command_line):
    result = command_line("infer", "fake", stdin=b"ab\xff")
    assert (result.code, result.err.splitlines()[0]) == (
        2,
        "error: stdin is not UTF-8 text: byte 2 is 0xff",
    )
