"""Encoders behind the same requests as decoders: whole texts, many in a step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.engine.assembly import build_core
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import run_all
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.errors import ContextTooLongError, InvalidRequestError, UnsupportedError
from hyprstream.models.attention import PackedAttention
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.load import open_model
from hyprstream.models.pooling import pool
from hyprstream.refs import RequestId, VersionId
from tests.engine.adapters import low_rank
from tests.models.reference import make_model, variants


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    make_model(variants("bert")["plain"]).save_pretrained(folder)
    return open_model(folder).load(device=torch.device("cpu"), dtype=torch.float32)


def embed(number, token_ids, **fields):
    return Request(id=RequestId(str(number)), token_ids=tuple(token_ids), embeds=True, **fields)


@torch.inference_mode()
def alone(encoder, token_ids, pooling="mean"):
    batch = ForwardBatch(
        token_ids=torch.tensor(token_ids),
        positions=torch.arange(len(token_ids)),
        attention=PackedAttention(encoder.config.attention, [len(token_ids)], causal=False),
    )
    hidden = encoder.forward(batch)
    return pool(hidden, [len(token_ids)], pooling, normalize=encoder.config.normalize)[0]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=12),
    budget=st.integers(16, 40),
    max_sequences=st.integers(1, 8),
    poolings=st.lists(st.sampled_from(["cls", "last", "mean", None]), min_size=12, max_size=12),
)
def test_whatever_shares_a_step_a_text_has_the_vector_that_it_has_alone(
    encoder, lengths, budget, max_sequences, poolings
):
    config = EngineConfig(
        max_batch_tokens=budget, max_sequences=max_sequences, block_tokens=4, max_overtakes=2
    )
    core = build_core(encoder, config)
    texts = [[(7 * i + 3 * j) % 60 + 3 for j in range(n)] for i, n in enumerate(lengths)]
    requests = [
        embed(i, text, pooling=pooling)
        for i, (text, pooling) in enumerate(zip(texts, poolings, strict=False))
    ]
    for request in requests:
        core.add(request)
    vectors = {}
    while core.has_work:
        for event in core.step():
            assert event.is_last
            vectors[event.sequence_id.request_id] = event.embedding
        core.check_integrity()
    for request, text in zip(requests, texts, strict=True):
        expected = alone(encoder, text, request.pooling or "mean")
        ours = torch.tensor(vectors[request.id])
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_text_that_does_not_fit_a_step_waits_and_is_not_cut(encoder):
    core = build_core(encoder, EngineConfig(max_batch_tokens=16, max_sequences=8))
    for number, length in enumerate((10, 10, 6)):
        core.add(embed(number, range(3, 3 + length)))
    first = [event.sequence_id.request_id for event in core.step()]
    assert first == ["0", "2"]
    assert [event.sequence_id.request_id for event in core.step()] == ["1"]
    assert core.open_requests == []


def test_what_no_step_has_room_for_is_refused(encoder):
    core = build_core(encoder, EngineConfig(max_batch_tokens=16, max_sequences=8))
    with pytest.raises(ContextTooLongError):
        core.add(embed(0, range(3, 20)))
    longest = encoder.config.context_length
    core = build_core(encoder, EngineConfig())
    with pytest.raises(ContextTooLongError):
        core.add(embed(0, [3] * (longest + 1)))
    assert len(run_all(core, [embed(0, [3] * longest)])) == 1


def test_what_an_encoder_cannot_do_is_refused(encoder):
    core = build_core(encoder, EngineConfig())
    with pytest.raises(UnsupportedError, match="writes none"):
        core.add(Request(id=RequestId("g"), token_ids=(3,), params=SamplingParams()))
    with pytest.raises(UnsupportedError, match="no adapters"):
        core.install(VersionId("a"), low_rank(0))
    with pytest.raises(UnsupportedError, match="adapter"):
        core.add(embed(0, [3], adapter=VersionId("a")))
    with pytest.raises(InvalidRequestError, match="outside"):
        core.add(embed(0, [encoder.config.vocab_size]))
    assert core.open_requests == []
