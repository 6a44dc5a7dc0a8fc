"""Put an engine core together from a model and a configuration."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import EngineCore
from hyprstream.engine.encoder_runner import EncoderRunner
from hyprstream.engine.paged_cache import block_bytes
from hyprstream.engine.request import Grammar
from hyprstream.engine.runner import ModelRunner
from hyprstream.engine.sampler import TokenConstraint
from hyprstream.engine.scheduler import Scheduler
from hyprstream.engine.versions import HostVersions
from hyprstream.errors import InvalidSettingsError, UnsupportedError
from hyprstream.lora.bank import LoraBank
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from hyprstream.models.encoder import Encoder
from hyprstream.refs import VersionId

log = logging.getLogger(__name__)

_USUAL_KV_BYTES = 1 << 30


def build_core(
    model: Decoder | Encoder,
    config: EngineConfig,
    *,
    eos_ids: frozenset[int] = frozenset(),
    constraint_of: Callable[[Grammar], TokenConstraint] | None = None,
    fetch: Callable[[VersionId], LoraWeights] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> EngineCore:
    """Allocate memory as the configuration says, and join the parts around it.

    Args:
        model: The base model; an encoder embeds, without adapters, and reads no text that is
            longer than `max_batch_tokens`.
        config: Sizes and limits.
        eos_ids: The model's own end tokens.
        constraint_of: Compiles grammars: `GrammarCompiler.compile`; None where answers cannot
            follow one.
        fetch: Reads an installed adapter version from disk, if there is a disk tier.
        clock: What deadlines of requests refer to.

    Raises:
        InvalidSettingsError: The KV memory does not hold a single block, or not such heads.
    """
    if isinstance(model, Encoder):
        return _encoder_core(model, config, clock)
    num_blocks = count_blocks(model, config)
    bank = LoraBank(
        model.linears,
        num_slots=config.num_slots,
        max_rank=config.max_rank,
        dtype=model.dtype,
        device=model.device,
    )
    versions = HostVersions(config.adapter_memory_bytes, fetch=fetch, check=bank.check)
    runner = ModelRunner(
        model,
        bank,
        num_blocks=num_blocks,
        block_tokens=config.block_tokens,
        eos_ids=eos_ids,
        weights_of=versions.weights_of,
        constraint_of=constraint_of,
        kv_cache_dtype=config.kv_cache_dtype,
    )
    scheduler = Scheduler(
        config, num_blocks=num_blocks, context_length=model.config.context_length, clock=clock
    )
    log.info("KV memory: %d blocks, %d bytes", num_blocks, runner.cache_bytes)
    return EngineCore(scheduler, runner, versions, check=runner.check)


def _encoder_core(model: Encoder, config: EngineConfig, clock: Callable[[], float]) -> EngineCore:
    # Nothing is kept in blocks; they are as many as the texts of one step are counted with.
    num_blocks = config.max_batch_tokens // config.block_tokens + config.max_sequences
    scheduler = Scheduler(
        replace(config, num_slots=0, prefix_caching=False),
        num_blocks=2 * num_blocks,  # each running text wants a spare one
        context_length=min(model.config.context_length, config.max_batch_tokens),
        clock=clock,
        cuts_prompts=False,
    )
    runner = EncoderRunner(model)
    versions = HostVersions(config.adapter_memory_bytes, check=_refuse_adapter)
    return EngineCore(scheduler, runner, versions, check=runner.check)


def _refuse_adapter(_weights: LoraWeights) -> None:
    raise UnsupportedError(
        "encoders take no adapters", hint="Install adapters on a model that generates."
    )


def count_blocks(model: Decoder, config: EngineConfig) -> int:
    """Return how many KV blocks fit the memory that the configuration allows.

    Where it leaves the choice: one for every position that could be asked for at a time, as
    far as a gigabyte goes.

    Raises:
        InvalidSettingsError: Not a single one fits, or the heads cannot be kept like that.
    """
    size = block_bytes(model.config, model.dtype, config.block_tokens, config.kv_cache_dtype)
    if config.kv_memory_bytes is not None:
        if config.kv_memory_bytes < size:
            raise InvalidSettingsError(
                f"engine.kv_memory_bytes is {config.kv_memory_bytes}, one block takes {size}",
                hint=f"Make it {size} or more, or leave it out.",
            )
        return config.kv_memory_bytes // size
    per_sequence = -(-model.config.context_length // config.block_tokens)
    return max(1, min(config.max_sequences * per_sequence, _USUAL_KV_BYTES // size))
