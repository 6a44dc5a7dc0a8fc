import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.errors import InvalidSettingsError


def test_the_defaults_are_allowed():
    assert EngineConfig().max_batch_tokens == 2048


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch_tokens", 0),
        ("max_batch_tokens", True),
        ("max_sequences", 0),
        ("max_waiting", 0),
        ("max_overtakes", -1),
        ("block_tokens", 0),
        ("kv_memory_bytes", 0),
        ("kv_memory_bytes", True),
        ("num_slots", -1),
        ("max_rank", 0),
        ("max_drafts", -1),
        ("background_share", 1.1),
        ("background_share", -0.1),
        ("background_burst_s", -0.01),
        ("background_every", 0),
        ("max_sequences", 4096),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InvalidSettingsError, match=f"engine.{name} is {value!r}") as caught:
        EngineConfig(**{name: value})
    assert caught.value.hint.startswith("Make it")


def test_memory_may_be_given_in_bytes():
    assert EngineConfig(kv_memory_bytes=1 << 30).kv_memory_bytes == 1 << 30


def test_blocks_in_8_bits_are_of_whole_tiles():
    assert EngineConfig(kv_cache_dtype="int8", block_tokens=32).block_tokens == 32
    with pytest.raises(InvalidSettingsError, match=r"engine\.block_tokens is 8") as caught:
        EngineConfig(kv_cache_dtype="int8", block_tokens=8)
    assert "multiple of 16" in caught.value.hint
