"""From a configuration to an engine core: how much memory it takes, and what it refuses."""

import pytest

from hyprstream.engine.assembly import build_core, count_blocks
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import run_all
from hyprstream.engine.paged_cache import block_bytes
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.errors import IncompatibleAdapterError, InvalidRequestError, InvalidSettingsError
from hyprstream.refs import RequestId, VersionId
from tests.engine.adapters import low_rank
from tests.models.reference import load_decoder, make_model, variants


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assembly")
    make_model(variants("qwen3")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def make_request(token_ids):
    params = SamplingParams(max_tokens=2)
    return Request(id=RequestId("r"), token_ids=token_ids, params=params)


def test_kv_memory_is_never_above_what_the_configuration_allows(model):
    size = block_bytes(model.config, model.dtype, 16)
    for memory in (size, 2 * size - 1, 10 * size):
        assert count_blocks(model, EngineConfig(kv_memory_bytes=memory)) == memory // size


def test_without_a_bound_every_sequence_has_room_for_its_whole_context(model):
    config = EngineConfig(max_sequences=3, block_tokens=16)
    assert count_blocks(model, config) == 3 * model.config.context_length // 16


def test_a_memory_too_small_for_one_block_is_refused(model):
    with pytest.raises(InvalidSettingsError, match="kv_memory_bytes is 10"):
        count_blocks(model, EngineConfig(kv_memory_bytes=10))


def test_a_token_that_the_model_does_not_have_is_refused_before_it_is_computed(model):
    core = build_core(model, EngineConfig())
    with pytest.raises(InvalidRequestError, match="outside"):
        core.add(make_request((model.config.vocab_size,)))
    assert len(run_all(core, [make_request((1,))])[RequestId("r")]) == 2


def test_an_adapter_that_no_slot_could_hold_is_refused_when_it_is_installed(model):
    core = build_core(model, EngineConfig(max_rank=4))
    with pytest.raises(IncompatibleAdapterError):
        core.install(VersionId("large"), low_rank(0, model.linears, rank=5))
    with pytest.raises(IncompatibleAdapterError):
        core.install(VersionId("foreign"), low_rank(0))
    core.install(VersionId("fits"), low_rank(0, model.linears, rank=4))


def test_an_adapter_fetched_from_disk_is_checked_with_the_first_request(model):
    core = build_core(model, EngineConfig(max_rank=4), fetch=lambda _version: low_rank(0))
    core.install(VersionId("foreign"))
    params = SamplingParams(max_tokens=2)
    request = Request(
        id=RequestId("r"), token_ids=(1,), params=params, adapter=VersionId("foreign")
    )
    with pytest.raises(IncompatibleAdapterError):
        core.add(request)
    assert core.open_requests == []
