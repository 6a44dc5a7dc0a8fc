"""What the runner makes of a plan, row by row."""

import math
from dataclasses import replace

import pytest
import torch

from hyprstream.engine.encoder_runner import EncoderRunner
from hyprstream.engine.generate import generate
from hyprstream.engine.paged_cache import block_bytes
from hyprstream.engine.plan import Plan, Row, Runner, SequenceId, Start
from hyprstream.engine.request import MAX_SEED, Grammar, Request, SamplingParams
from hyprstream.engine.runner import ModelRunner
from hyprstream.errors import (
    InvalidRequestError,
    NonFiniteEmbeddingError,
    NonFiniteLogitsError,
    UnsupportedError,
)
from hyprstream.models.attention import PackedAttention
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.load import open_model
from hyprstream.models.pooling import pool
from hyprstream.refs import RequestId
from tests.engine.stepping import Driver, FakeBank, alone, chance, request
from tests.models.reference import load_decoder, make_model, packed_logits, variants

GREEDY = SamplingParams(temperature=0, max_tokens=8)
PROMPT = tuple(range(3, 40))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runner")
    make_model(variants("gemma3_text")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def no_adapters(version):
    raise AssertionError(version)


def runner_of(model, eos_ids=frozenset(), **options):
    return ModelRunner(
        model,
        FakeBank(),
        num_blocks=200,
        block_tokens=4,
        eos_ids=eos_ids,
        weights_of=no_adapters,
        **options,
    )


def driver_of(runner, seed=0):
    return Driver(runner, chance(seed), num_blocks=200, size=4, context_length=128)


def row(tokens, start=0, *, num_drafts=0, samples=True, index=0):
    return Row(
        sequence_id=SequenceId(RequestId("r"), index),
        token_ids=tuple(tokens),
        start=start,
        blocks=tuple(range(30 * index, 30 * (index + 1))),
        slot=0,
        num_drafts=num_drafts,
        samples=samples,
    )


def started(runner, wanted, *rows):
    """Run the first step of the answers to a request."""
    starts = tuple(Start(sequence_id=r.sequence_id, request=wanted) for r in rows)
    return runner.run(Plan(rows=rows, starts=starts))


def test_a_model_runner_is_a_runner(model):
    assert isinstance(runner_of(model), Runner)


@pytest.mark.parametrize(
    ("num_right", "num_wrong"), [(0, 0), (0, 3), (1, 0), (1, 2), (3, 0), (3, 1)]
)
def test_drafts_are_taken_as_far_as_they_are_right(model, num_right, num_wrong):
    expected = [event.token_id for event in generate(model, PROMPT, GREEDY)]
    wrong = [(token + 1) % 97 for token in expected]
    drafts = (*expected[:num_right], *wrong[num_right : num_right + num_wrong])
    runner = runner_of(model)
    sampled = started(
        runner, request("r", PROMPT, GREEDY), row((*PROMPT, *drafts), num_drafts=len(drafts))
    )
    events = sampled[SequenceId(RequestId("r"))].events
    assert [event.token_id for event in events] == expected[: num_right + 1]


def test_drafts_past_an_end_are_not_looked_at(model):
    expected = [event.token_id for event in generate(model, PROMPT, GREEDY)]
    end = expected[1]
    runner = runner_of(model, frozenset({end}))
    sampled = started(
        runner, request("r", PROMPT, GREEDY), row((*PROMPT, *expected[:4]), num_drafts=4)
    )
    events = sampled[SequenceId(RequestId("r"))].events
    count = expected.index(end) + 1
    assert [event.token_id for event in events] == expected[:count]
    assert events[-1].finish == "stop"


def test_a_row_that_does_not_sample_yields_nothing(model):
    sampled = started(runner_of(model), request("r", PROMPT), row(PROMPT[:9], samples=False))
    only = sampled[SequenceId(RequestId("r"))]
    assert (only.events, only.prompt_logprobs, only.embedding) == ((), (), None)


def test_a_plan_without_rows_yields_nothing(model):
    runner = runner_of(model)
    assert runner.run(Plan(rows=())) == {}


def test_what_is_kept_for_a_sequence_goes_with_it(model):
    runner = runner_of(model)
    started(runner, request("r", PROMPT), row(PROMPT))
    assert runner.num_sequences == 1
    never_ran = SequenceId(RequestId("other"))
    runner.run(Plan(rows=(), ended=(SequenceId(RequestId("r")), never_ran)))
    assert runner.num_sequences == 0


def test_a_name_that_ended_can_start_in_the_same_plan(model):
    runner = runner_of(model)
    first = started(runner, request("r", PROMPT), row(PROMPT))
    again = runner.run(
        Plan(
            rows=(row(PROMPT),),
            ended=(SequenceId(RequestId("r")),),
            starts=(Start(sequence_id=SequenceId(RequestId("r")), request=request("r", PROMPT)),),
        )
    )
    assert again == first


def test_the_memory_is_that_of_its_blocks(model):
    assert runner_of(model).cache_bytes == 200 * block_bytes(model.config, torch.float32, 4)


def test_each_answer_has_random_numbers_of_its_own(model):
    params = SamplingParams(temperature=1.5, seed=MAX_SEED, max_tokens=12)
    driver = driver_of(runner_of(model))
    wanted = request("r", PROMPT, params, num_answers=2)
    answers = [driver.add(wanted, index=index) for index in range(2)]
    driver.run()
    second = SamplingParams(temperature=1.5, seed=0, max_tokens=12)  # MAX_SEED + 1, around
    for answer, alone_params in zip(answers, (params, second), strict=True):
        assert answer.events == list(generate(model, PROMPT, alone_params))


def test_the_context_ends_an_answer_also_with_drafts(model):
    wanted = request("r", list(range(90)), SamplingParams(temperature=0))
    expected = alone(model, wanted)
    driver = driver_of(runner_of(model))
    answer = driver.add(wanted, guesses=[event.token_id for event in expected])
    driver.run()
    assert answer.events == expected
    assert answer.events[-1].finish == "length"


@pytest.mark.parametrize("limit", [1, 97 * 4, 1 << 23])
def test_prompt_logprobs_are_those_of_the_whole_prompt(model, limit, monkeypatch):
    monkeypatch.setattr("hyprstream.engine.runner._MAX_LOGITS", limit)
    wanted = request("r", PROMPT, GREEDY, prompt_logprobs=3, num_answers=2)
    driver = driver_of(runner_of(model))
    first, second = (driver.add(wanted, index=index) for index in range(2))
    driver.add(request("other", PROMPT[:9]))
    driver.run()
    logprobs = packed_logits(model, torch.tensor(PROMPT))[0].log_softmax(-1)
    assert len(first.prompt_logprobs) == len(PROMPT) - 1
    for position, ours in enumerate(first.prompt_logprobs):
        expected = logprobs[position]
        assert ours.chosen == pytest.approx(float(expected[PROMPT[position + 1]]), abs=1e-4)
        top = expected.topk(3)
        assert [token for token, _ in ours.top] == top.indices.tolist()
        torch.testing.assert_close(
            torch.tensor([p for _, p in ours.top]), top.values, atol=1e-4, rtol=0
        )
    assert second.prompt_logprobs == []


def test_a_prompt_of_one_token_has_no_logprobs_to_report(model):
    driver = driver_of(runner_of(model))
    sequence = driver.add(request("r", [5], prompt_logprobs=0))
    driver.run()
    assert sequence.prompt_logprobs == []


def whole_hidden(model, ids, *, causal=True):
    attention = PackedAttention(model.config.attention, [len(ids)], causal=causal)
    batch = ForwardBatch(
        token_ids=torch.tensor(ids), positions=torch.arange(len(ids)), attention=attention
    )
    with torch.no_grad():
        return model.forward(batch)


@pytest.mark.parametrize("preempts", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", [None, "mean", "last", "cls"])
def test_embeddings_are_those_of_the_whole_text(model, pooling, normalize, preempts, monkeypatch):
    changed = replace(model.config, pooling=pooling, normalize=normalize)
    monkeypatch.setattr(model, "config", changed)
    driver = driver_of(runner_of(model), seed=7)
    texts = [PROMPT, PROMPT[::-1], (5,)]
    made = [driver.add(request(f"e{i}", t, embeds=True)) for i, t in enumerate(texts)]
    answer = driver.add(request("a", PROMPT))
    driver.run(preempts=preempts)
    for text, sequence in zip(texts, made, strict=True):
        hidden = whole_hidden(model, text)
        expected = pool(hidden, [len(text)], pooling or "last", normalize=normalize)[0]
        assert sequence.embedding is not None
        torch.testing.assert_close(torch.tensor(sequence.embedding), expected, atol=1e-4, rtol=1e-4)
        assert sequence.events == []
    assert answer.events == alone(model, answer.request)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_request_may_choose_its_pooling(model, pooling):
    driver = driver_of(runner_of(model), seed=7)
    made = driver.add(replace(request("e", PROMPT, embeds=True), pooling=pooling))
    driver.run()
    normalize = model.config.normalize
    expected = pool(whole_hidden(model, PROMPT), [len(PROMPT)], pooling, normalize=normalize)[0]
    assert made.embedding is not None
    torch.testing.assert_close(torch.tensor(made.embedding), expected, atol=1e-4, rtol=1e-4)


def test_the_first_position_of_a_decoder_is_no_embedding(model):
    with pytest.raises(UnsupportedError, match="seen none"):
        runner_of(model).check(replace(request("e", PROMPT, embeds=True), pooling="cls"))


def test_a_request_that_cannot_start_is_refused_before(model):
    runner = runner_of(model, frozenset({2}))
    runner.check(request("r", PROMPT))
    runner.check(request("e", PROMPT, embeds=True))
    with pytest.raises(InvalidRequestError, match="outside 0 to 96"):
        runner.check(request("r", [97]))
    with pytest.raises(InvalidRequestError, match="names token 97"):
        runner.check(request("r", [1], SamplingParams(logit_bias={97: 1.0})))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A model that is sound unless token 7 comes up."""
    folder = tmp_path_factory.mktemp("broken")
    reference = make_model(variants("llama")["plain"])
    with torch.no_grad():
        reference.get_input_embeddings().weight[7] = math.nan
    reference.save_pretrained(folder)
    return load_decoder(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"params": SamplingParams(temperature=0)},
        {"params": SamplingParams(seed=1)},
        {"prompt_logprobs": 0},
    ],
)
def test_logits_that_are_no_numbers_are_an_error_of_the_sequence(broken, options):
    samples = "prompt_logprobs" not in options
    sampled = started(
        runner_of(broken), request("r", [7, 5], **options), row([7, 5], samples=samples)
    )
    only = sampled[SequenceId(RequestId("r"))]
    assert isinstance(only.error, NonFiniteLogitsError)
    assert (only.events, only.prompt_logprobs) == ((), ())


def test_a_sequence_that_fails_takes_no_other_with_it(broken):
    params = [SamplingParams(temperature=0), SamplingParams(seed=1, temperature=1.5)] * 2
    texts = [(5, 7), (7, 5), (5, 6), (6, 5)]
    rows = [row(text, index=i) for i, text in enumerate(texts)]
    starts = tuple(
        Start(sequence_id=r.sequence_id, request=request("r", text, p))
        for r, text, p in zip(rows, texts, params, strict=True)
    )
    sampled = runner_of(broken).run(Plan(rows=tuple(rows), starts=starts))
    answers = [sampled[r.sequence_id] for r in rows]
    assert [type(a.error) for a in answers[:2]] == [NonFiniteLogitsError] * 2
    for i in (2, 3):  # answer i of a request has seed + i
        seed = None if params[i].seed is None else 1 + i
        first = next(generate(broken, texts[i], replace(params[i], seed=seed)))
        assert (answers[i].error, answers[i].events) == (None, (first,))


def test_a_vector_that_is_no_numbers_is_an_error_of_its_text(broken):
    sampled = started(
        runner_of(broken), request("r", [5, 7], embeds=True), row([5, 7], samples=False)
    )
    only = sampled[SequenceId(RequestId("r"))]
    assert isinstance(only.error, NonFiniteEmbeddingError)
    assert only.embedding is None


class Only:
    """A constraint: every token but one is forbidden, and none after some tokens."""

    def __init__(self, token_id, num_tokens):
        self._token_id, self._left = token_id, num_tokens
        self.can_end = False
        self.is_finished = False

    def forbidden(self):
        marks = torch.ones(97, dtype=torch.bool)
        marks[self._token_id] = self._left == 0
        return marks

    def accept(self, token_id):
        assert token_id == self._token_id
        self._left -= 1


def test_an_answer_follows_its_grammar_and_fails_alone_when_there_is_no_way_on(model):
    params = SamplingParams(temperature=0, grammar=Grammar(kind="regex", text="a*"))
    runner = runner_of(model, constraint_of=lambda _grammar: Only(42, 2))
    driver = driver_of(runner)
    free = driver.add(request("free", PROMPT))
    bound = driver.add(request("bound", PROMPT, params))
    driver.run()
    assert [event.token_id for event in bound.events] == [42, 42]
    assert isinstance(bound.error, InvalidRequestError)
    assert free.events == alone(model, free.request)


class Residues:
    """A constraint: the i-th token is i modulo 3."""

    can_end = is_finished = False

    def __init__(self):
        self._num_tokens = 0

    def forbidden(self):
        return torch.arange(97) % 3 != self._num_tokens % 3

    def accept(self, token_id):
        assert token_id % 3 == self._num_tokens % 3
        self._num_tokens += 1


@pytest.mark.parametrize("right", [0, 1, 3, 12])
@pytest.mark.parametrize("temperature", [0, 1])
def test_drafts_do_not_show_in_an_answer_that_follows_a_grammar(model, temperature, right):
    grammar = Grammar(kind="regex", text="a*")
    params = SamplingParams(temperature=temperature, seed=5, max_tokens=12, grammar=grammar)

    def answer(guesses):
        driver = driver_of(runner_of(model, constraint_of=lambda _grammar: Residues()))
        served = driver.add(request("r", PROMPT, params), guesses=guesses)
        driver.run()
        assert served.error is None
        return served.events

    plain = answer([])
    tokens = [event.token_id for event in plain]
    assert [token % 3 for token in tokens] == [0, 1, 2] * 4
    # Wrong guesses: some that the grammar forbids, some that it admits.
    wrong = [(token + 1 + 2 * (i % 2)) % 97 for i, token in enumerate(tokens)]
    assert answer(tokens[:right] + wrong[right:]) == plain


def test_a_grammar_without_a_compiler_fails_before_and_at_the_start(model):
    params = SamplingParams(grammar=Grammar(kind="regex", text="a*"))
    runner = runner_of(model)
    wanted = request("r", PROMPT, params)
    with pytest.raises(UnsupportedError, match="grammar"):
        runner.check(wanted)
    sampled = started(runner, wanted, row(PROMPT))
    assert isinstance(sampled[SequenceId(RequestId("r"))].error, UnsupportedError)
    assert runner.num_sequences == 0


def test_what_is_no_number_stays_in_its_own_sequence(broken):
    runner = runner_of(broken)
    started(runner, request("r", [7] * 40, GREEDY), row([7] * 40, samples=False))
    ended = (SequenceId(RequestId("r")),)
    rows = [row(PROMPT[5 : 10 + i], index=i) for i in range(3)]
    wanted = request("s", PROMPT, GREEDY)
    starts = tuple(Start(sequence_id=r.sequence_id, request=wanted) for r in rows)
    sampled = runner.run(Plan(rows=tuple(rows), starts=starts, ended=ended))
    last = {
        r.sequence_id: row(
            [sampled[r.sequence_id].events[0].token_id],
            len(r.token_ids),
            index=r.sequence_id.answer,
        )
        for r in rows
    }
    sampled = runner.run(Plan(rows=tuple(last.values())))
    for r in rows:
        expected = list(generate(broken, r.token_ids, GREEDY))
        assert sampled[r.sequence_id].events[0].token_id == expected[1].token_id


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    make_model(variants("bert")["plain"]).save_pretrained(folder)
    return open_model(folder).load(device=torch.device("cpu"), dtype=torch.float32)


def test_an_encoder_embeds_a_batch_as_one_by_one(encoder):
    runner = EncoderRunner(encoder)
    texts = [PROMPT, (5,), PROMPT[:9]]
    rows = [row(text, index=i) for i, text in enumerate(texts)]
    sampled = runner.run(Plan(rows=tuple(rows)))
    assert encoder.config.pooling is None
    for text, wanted in zip(texts, rows, strict=True):
        hidden = whole_hidden(encoder, text, causal=False)
        expected = pool(hidden, [len(text)], "mean", normalize=encoder.config.normalize)[0]
        ours = sampled[wanted.sequence_id].embedding
        assert ours is not None
        torch.testing.assert_close(torch.tensor(ours), expected, atol=1e-5, rtol=1e-5)
    assert isinstance(runner, Runner)
    assert runner.run(Plan(rows=())) == {}


def test_an_encoder_refuses_a_text_that_was_cut(encoder):
    with pytest.raises(AssertionError, match="cut"):
        EncoderRunner(encoder).run(Plan(rows=(row(PROMPT[4:], 4),)))


@pytest.mark.parametrize(
    "neighbour", [SamplingParams(seed=3), SamplingParams(temperature=0, min_tokens=3)]
)
def test_greedy_answers_of_packed_models_do_not_depend_on_who_wants_logits(test_data, neighbour):
    file = test_data / "stories260K" / "gguf" / "stories260K-Q4_0.gguf"
    model = open_model(file).load(device=torch.device("cpu"), dtype=torch.bfloat16)
    runner = runner_of(model)
    for index, params in enumerate((GREEDY, GREEDY, neighbour)):
        start = Start(sequence_id=row(PROMPT, index=index).sequence_id, request=Request(
            id=RequestId("r"), token_ids=PROMPT, params=params
        ))  # fmt: skip
        runner.run(Plan(rows=(), starts=(start,)))
    only = runner.run(Plan(rows=(row(PROMPT),)))
    both = runner.run(Plan(rows=(row(PROMPT, index=1), row(PROMPT, index=2))))
    (alone_event,), (event,) = (
        sampled[SequenceId(RequestId("r"), index)].events
        for sampled, index in ((only, 0), (both, 1))
    )
    assert alone_event == event
    assert len(both) == 2
