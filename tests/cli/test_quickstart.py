from types import SimpleNamespace

from tests.cli.fakes import DEFAULT_REF, FakeGeneration


def test_quickstart_asks_the_default_model_and_prints_whatever_it_says(command_line, runtime):
    result = command_line("quickstart")
    assert result.code == 0
    assert [loaded["ref"] for loaded in runtime.loaded] == [DEFAULT_REF]
    questions = [messages[0]["content"] for messages in runtime.asked]
    assert len(questions) == 3
    assert result.out == "".join(f"echo: {question} \n" for question in questions)


def test_quickstart_tells_what_comes_next(command_line):
    err = command_line("quickstart").err
    assert "hyprstream chat" in err
    assert f'Model.load("{DEFAULT_REF}")' in err


def test_quickstart_shows_the_speed(command_line, monkeypatch):
    usage = SimpleNamespace(completion_tokens=12)
    timings = SimpleNamespace(tokens_per_s=34.4)
    completion = SimpleNamespace(usage=usage, timings=timings)
    monkeypatch.setattr(FakeGeneration, "completion", completion)
    assert "(12 tokens, 34/s)" in command_line("quickstart").err
