"""Any cut, any blocks, any company, drafts right and wrong: each sequence as if alone."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream import lookup
from hyprstream.engine.request import SamplingParams
from hyprstream.engine.runner import ModelRunner
from hyprstream.refs import VersionId
from tests.engine.stepping import (
    Adapted,
    Driver,
    FakeBank,
    alone,
    chance,
    random_adapter,
    request,
)
from tests.models.reference import load_decoder, make_model, variants

FAMILIES = [name for name in lookup.names("hyprstream.models.arch") if name != "bert"]
MODELS = [
    pytest.param(family, name, id=f"{family}: {name}")
    for family in FAMILIES
    for name in variants(family)
    if "window" in name or name == next(iter(variants(family)))
]

SAMPLING = [
    SamplingParams(temperature=0, max_tokens=10),
    SamplingParams(temperature=0, max_tokens=6, min_tokens=4, logprobs=2),
    SamplingParams(temperature=1.2, top_k=20, seed=5, max_tokens=10),
    SamplingParams(temperature=1.0, seed=11, max_tokens=12, repetition_penalty=1.3),
    SamplingParams(temperature=0, max_tokens=9, frequency_penalty=0.7),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models by family and variant, each loaded once."""

    @cache
    def load(family, name):
        folder = tmp_path_factory.mktemp("model")
        make_model(variants(family)[name]).save_pretrained(folder)
        return load_decoder(folder, 32 if "longrope" in name else None)

    return load


def check(model, luck, *, num_sequences, size):
    """Serve random sequences together and compare each with itself alone."""
    names = [VersionId("one"), VersionId("two")]
    adapters = {name: random_adapter(model, seed) for seed, name in enumerate(names)}
    eos_ids = frozenset({2, 3})
    runner = ModelRunner(
        model,
        FakeBank(),
        num_blocks=400,
        block_tokens=size,
        eos_ids=eos_ids,
        weights_of=adapters.__getitem__,
    )
    driver = Driver(
        runner,
        luck,
        num_blocks=400,
        size=size,
        context_length=model.config.context_length,
    )
    served = []
    for i in range(num_sequences):
        prompt = [luck.randrange(97) for _ in range(luck.choice([1, 3, 17, 28]))]
        params = luck.choice(SAMPLING)
        slot = luck.randrange(3)
        wanted = request(f"r{i}", prompt, params, adapter=names[slot - 1] if slot else None)
        judge = Adapted(model, adapters[names[slot - 1]]) if slot else model
        expected = alone(judge, wanted, eos_ids)
        guesses = [
            event.token_id if luck.random() < 0.7 else luck.randrange(97) for event in expected
        ]
        served.append((driver.add(wanted, slot=slot, guesses=guesses), expected))
    driver.run(preempts=True)
    for sequence, expected in served:
        ours = [(e.token_id, e.finish, e.is_stop) for e in sequence.events]
        assert ours == [(e.token_id, e.finish, e.is_stop) for e in expected]
        for event, judged in zip(sequence.events, expected, strict=True):
            assert (event.logprobs is None) == (judged.logprobs is None)
            if event.logprobs is not None and judged.logprobs is not None:
                assert event.logprobs.chosen == pytest.approx(judged.logprobs.chosen, abs=1e-4)
    assert runner.num_sequences == 0


@pytest.mark.parametrize(("family", "name"), MODELS)
def test_any_schedule_gives_what_each_sequence_gets_alone(family, name, models):
    luck = chance(f"{family} {name}")
    check(models(family, name), luck, num_sequences=6, size=luck.choice([1, 4, 16]))


@given(
    seed=st.integers(0, 2**32),
    num_sequences=st.integers(1, 10),
    size=st.sampled_from([1, 2, 16]),
)
@settings(max_examples=6, deadline=None)
def test_any_schedule_of_any_size(models, seed, num_sequences, size):
    model = models("qwen2", "windowed")
    check(model, chance(seed), num_sequences=num_sequences, size=size)
