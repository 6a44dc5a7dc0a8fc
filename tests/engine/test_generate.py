"""The plain loop against transformers' own, and its edges."""

import pytest
import torch

from hyprstream.engine.generate import generate
from hyprstream.engine.request import SamplingParams
from hyprstream.errors import ContextTooLongError, InvalidRequestError
from hyprstream.models.load import open_model
from tests.models.reference import make_model, variants

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tiny model of ours and the transformers model that it was saved from."""
    folder = tmp_path_factory.mktemp("generate")
    reference = make_model(variants("qwen3")["plain"])
    reference.save_pretrained(folder)
    ours = open_model(folder).load(device=torch.device("cpu"), dtype=torch.float32)
    return ours, reference


def tokens(decoder, prompt, params, **options):
    return [event.token_id for event in generate(decoder, prompt, params, **options)]


@pytest.mark.parametrize("prompt", [[5], [7, 8, 9], list(range(60))])
def test_greedy_tokens_equal_those_of_transformers(pair, prompt):
    ours, reference = pair
    expected = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert tokens(ours, prompt, GREEDY) == expected[0, len(prompt) :].tolist()


def test_an_end_token_stops_and_is_marked(pair):
    ours, _ = pair
    free = tokens(ours, [5], GREEDY)
    end = free[4]
    events = list(generate(ours, [5], GREEDY, eos_ids=frozenset({end})))
    assert [event.token_id for event in events] == free[: free.index(end) + 1]
    assert (events[-1].finish, events[-1].is_stop) == ("stop", True)


def test_the_context_ends_a_generation_without_a_limit(pair):
    ours, _ = pair
    params = SamplingParams(temperature=0)
    prompt = list(range(90)) * 2
    events = list(generate(ours, prompt[:120], params))
    assert len(events) == ours.config.context_length - 120
    assert events[-1].finish == "length"


def test_same_seed_same_tokens(pair):
    ours, _ = pair
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=20)
    assert tokens(ours, [5], params) == tokens(ours, [5], params)
    other = SamplingParams(temperature=1.5, seed=4, max_tokens=20)
    assert tokens(ours, [5], params) != tokens(ours, [5], other)


def test_a_prompt_beyond_the_context_is_refused_with_both_lengths(pair):
    ours, _ = pair
    with pytest.raises(ContextTooLongError) as caught:
        generate(ours, [1] * 128, GREEDY)
    assert (caught.value.num_tokens, caught.value.max_tokens) == (128, 127)


@pytest.mark.parametrize("prompt", [[], [97], [-1]])
def test_a_prompt_that_is_no_prompt_is_refused(pair, prompt):
    ours, _ = pair
    with pytest.raises(InvalidRequestError, match="prompt"):
        generate(ours, prompt, GREEDY)
