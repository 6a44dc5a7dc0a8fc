"""From token events to text: stop strings, half characters, log probabilities, early close."""

from collections.abc import Iterator, Sequence

import pytest
import tokenizers

from hyprstream.engine.request import FinishReason, SamplingParams, TokenEvent, TokenLogprobs
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.runtime.text import Generation
from tests.models import vocabularies


class Clock:
    """Gives one second more each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Events:
    """Token events that remember whether they were closed."""

    def __init__(
        self, tokens: Sequence[int], finish: FinishReason | None = "length", **fields
    ) -> None:
        self._left = list(tokens)
        self._finish = finish
        self._fields = fields
        self.closed = False

    def __iter__(self) -> Iterator[TokenEvent]:
        return self

    def __next__(self) -> TokenEvent:
        if self.closed:
            raise StopIteration
        token = self._left.pop(0)
        finish = self._finish if not self._left else None
        return TokenEvent(token_id=token, finish=finish, **self._fields)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """One token per byte, so that tests choose where a text is cut."""
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def byte_tokenizer(folder) -> Tokenizer:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


def start(tokenizer, text: str | bytes, params=None, *, events=None, **fields) -> Generation:
    data = text.encode() if isinstance(text, str) else text
    ids = [tokenizer.encode(bytes([b]).decode("latin-1"))[-1] for b in data if b < 128]
    if len(ids) != len(data):
        ids = [token for b in data for token in _byte(tokenizer, b)]
    return Generation(
        events or Events(ids, **fields),
        tokenizer,
        params or SamplingParams(),
        prompt_tokens=3,
        seed=7,
        clock=Clock(),
    )


def _byte(tokenizer, byte: int) -> list[int]:
    return [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == bytes([byte])]


def test_pieces_add_up_to_the_text_and_the_counts_to_the_usage(tokenizer):
    generation = start(tokenizer, "Hello")
    assert "".join(delta.text for delta in generation) == "Hello"
    completion = generation.completion
    assert (completion.text, completion.finish_reason, completion.seed) == ("Hello", "length", 7)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 5)


def test_a_character_is_shown_when_its_last_byte_is_there(tokenizer):
    pieces = [delta.text for delta in start(tokenizer, "aé€")]
    assert pieces == ["a", "é", "€"]


def test_half_a_character_at_the_end_is_replaced(tokenizer):
    generation = start(tokenizer, "a€".encode()[:-1])
    assert "".join(delta.text for delta in generation) == "a\ufffd"


def test_a_stop_string_ends_the_answer_before_it_and_stops_the_work(tokenizer):
    events_seen: list[Events] = []

    def events() -> Events:
        ids = [_byte(tokenizer, b)[0] for b in b"one END two"]
        events_seen.append(Events(ids))
        return events_seen[0]

    generation = start(tokenizer, b"", SamplingParams(stop=("END",)), events=events())
    assert "".join(delta.text for delta in generation) == "one "
    assert generation.completion.finish_reason == "stop"
    assert generation.completion.usage.completion_tokens == len("one END")
    assert events_seen[0].closed


def test_what_might_have_become_a_stop_string_is_shown_at_the_end(tokenizer):
    generation = start(tokenizer, "one EN", SamplingParams(stop=("END",)))
    assert "".join(delta.text for delta in generation) == "one EN"
    assert generation.completion.finish_reason == "length"


def test_the_end_token_is_no_part_of_the_text(tokenizer):
    generation = start(tokenizer, "x", finish="stop", is_stop=True)
    assert [delta.text for delta in generation] == []
    assert generation.completion.text == ""
    assert generation.completion.finish_reason == "stop"
    assert generation.completion.usage.completion_tokens == 1


def test_log_probabilities_come_with_their_tokens(tokenizer):
    logprobs = TokenLogprobs(chosen=-0.5, top=((1, -0.5),))
    generation = start(tokenizer, "ab", SamplingParams(logprobs=1), logprobs=logprobs)
    tokens = [token for delta in generation for token in delta.tokens]
    assert [(token.text, token.logprobs) for token in tokens] == [("a", logprobs), ("b", logprobs)]
    assert generation.completion.tokens == tuple(tokens)


def test_closing_early_keeps_what_is_there(tokenizer):
    with start(tokenizer, "Hello") as generation:
        assert next(generation).text == "H"
    assert generation.completion.text == "H"
    assert generation.completion.finish_reason == "abort"
    assert list(generation) == []


def test_times_are_those_of_the_clock(tokenizer):
    generation = start(tokenizer, "Hello")
    list(generation)
    timings = generation.completion.timings
    assert (timings.prompt_s, timings.generate_s) == (1.0, 4.0)
    assert timings.tokens_per_s == 1.0
    assert timings.prompt_tokens_per_s == 3.0


def test_a_stream_needs_no_tokens_to_have_times(tokenizer):
    timings = start(tokenizer, "Hello").completion.timings
    assert (timings.tokens_per_s, timings.prompt_tokens_per_s) == (0.0, 0.0)


def test_a_continuation_keeps_its_first_blank():
    spm = Tokenizer.from_gguf(vocabularies.spm_metadata())
    ids = spm.encode("a a", add_special=False)
    for continues, expected in ((True, " a a"), (False, "a a")):
        generation = Generation(
            Events(ids), spm, SamplingParams(), prompt_tokens=1, seed=0, continues=continues
        )
        assert "".join(delta.text for delta in generation) == expected
