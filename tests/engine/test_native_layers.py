"""Whole layers in one call give the bits that layer by layer gives."""

import random
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyprstream.engine.config import KvCacheDtype
from hyprstream.engine.kv_cache import SequenceCache
from hyprstream.engine.native_attention import MAX_TOKENS, NativeAttention
from hyprstream.engine.paged_attention import PagedAttention
from hyprstream.engine.paged_cache import PagedCache
from hyprstream.engine.plan import Row, SequenceId
from hyprstream.kernels.native import open_kernels
from hyprstream.lora.bank import LoraBank
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from hyprstream.models import native_layers
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import Attention, ForwardBatch, LoraView
from hyprstream.models.load import open_model
from hyprstream.models.native_layers import NativeLayers
from hyprstream.models.quant import together
from hyprstream.refs import RequestId
from tests.engine.stepping import chance
from tests.models.reference import make_model, variants

_KERNELS = open_kernels()
pytestmark = pytest.mark.skipif(
    _KERNELS is None or not _KERNELS.packed_is_fast,
    reason="there are no kernels for this processor",
)

Storage = Literal["dense", "int8", "int4"]
CPU = torch.device("cpu")
BLOCK, NUM_BLOCKS = 4, 64
MAX_DENSE_ROWS = 64
# As usual, with a window, with biases, with normalised heads.
FAMILIES = {"llama": None, "mistral": "windowed", "qwen2": None, "qwen3": None}


@pytest.fixture(autouse=True)
def many_dense_rows(monkeypatch):
    """Up to where the kernels are faster depends on the processor, and what they do does not."""
    monkeypatch.setattr(native_layers, "max_dense_rows", lambda: MAX_DENSE_ROWS)
    monkeypatch.setattr(together, "max_dense_rows", lambda: MAX_DENSE_ROWS)


class LayerByLayer:
    """Attends as another does, and says nothing of where its keys are."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._attention.attend(layer, q, k, v)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    @cache
    def load(family: str, storage: Storage) -> Decoder:
        folder = tmp_path_factory.mktemp("model")
        wanted = FAMILIES[family] or next(iter(variants(family)))
        make_model(variants(family)[wanted]).save_pretrained(folder)
        return load_bfloat16(folder, storage)

    return load


def load_bfloat16(folder: Path, storage: Storage) -> Decoder:
    quantization = None if storage == "dense" else storage
    model = open_model(folder).load(device=CPU, dtype=torch.bfloat16, quantization=quantization)
    assert isinstance(model, Decoder)
    return model


class Server:
    """Sequences that grow by a few tokens in each step, in one cache."""

    def __init__(self, model: Decoder, num_sequences: int, kind: KvCacheDtype = "auto") -> None:
        self.model = model
        self.cache = PagedCache(
            model.config,
            num_blocks=NUM_BLOCKS,
            block_tokens=16 if kind == "int8" else BLOCK,
            dtype=model.dtype,
            device=CPU,
            kind=kind,
        )
        blocks = chance(0).sample(range(NUM_BLOCKS), NUM_BLOCKS)
        share = NUM_BLOCKS // num_sequences
        self.blocks = [tuple(blocks[i * share : (i + 1) * share]) for i in range(num_sequences)]
        self.lengths = [0] * num_sequences

    def batch(self, tokens: list[list[int]], lora: LoraView | None) -> ForwardBatch:
        rows = [
            Row(SequenceId(RequestId("r"), i), tuple(new), self.lengths[i], self.blocks[i], 0, True)
            for i, new in enumerate(tokens)
        ]
        native = NativeAttention.open(self.model.config, self.cache)
        positions = [row.start + n for row in rows for n in range(len(row.token_ids))]
        self.lengths = [row.start + len(row.token_ids) for row in rows]
        return ForwardBatch(
            token_ids=torch.tensor([token for new in tokens for token in new]),
            positions=torch.tensor(positions),
            attention=PagedAttention(self.model.config, self.cache, rows, native=native),
            lora=lora,
        )


def bank_of(model: Decoder, luck: random.Random) -> LoraBank:
    """Three adapters of various ranks, on various layers."""
    bank = LoraBank(model.linears, num_slots=3, max_rank=9, dtype=model.dtype, device=CPU)
    for slot in (1, 2, 3):
        bank.write(slot, random_weights(model, luck))
    return bank


def random_weights(model: Decoder, luck: random.Random) -> LoraWeights:
    generator = torch.Generator().manual_seed(luck.randrange(1 << 30))
    rank = luck.randint(1, 9)
    modules = {}
    for path, (outputs, inputs) in model.linears.items():
        if path.startswith("layers.") and luck.random() < 0.7:
            a = torch.randn(inputs, rank, generator=generator) * 0.3
            b = torch.randn(rank, outputs, generator=generator) * 0.3
            modules[path] = LowRank(a.to(model.dtype), b.to(model.dtype))
    return LoraWeights(modules)


def layer_by_layer(batch: ForwardBatch) -> ForwardBatch:
    return ForwardBatch(
        token_ids=batch.token_ids,
        positions=batch.positions,
        attention=LayerByLayer(batch.attention),
        lora=batch.lora,
    )


@settings(max_examples=30, deadline=None)
@given(
    family=st.sampled_from(list(FAMILIES)),
    storage=st.sampled_from(["dense", "int8", "int4"]),
    num_sequences=st.integers(1, 5),
    adapted=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 999),
)
def test_bits_are_those_of_layer_by_layer(
    models, family, storage, num_sequences, adapted, threads, seed
):
    model, luck = models(family, storage), chance(seed)
    servers = Server(model, num_sequences), Server(model, num_sequences)
    bank = bank_of(model, luck) if adapted else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(4):
            tokens = [
                [luck.randrange(97) for _ in range(luck.randint(1, 3))]
                for _ in range(num_sequences)
            ]
            slots = [slot for new in tokens for slot in [luck.randrange(4)] for _ in new]
            lora = None if bank is None else bank.view(slots)
            ours, theirs = (server.batch(tokens, lora) for server in servers)
            with torch.inference_mode():
                assert is_native(model, ours)
                expected = model.forward(layer_by_layer(theirs))
                assert torch.equal(model.forward(ours), expected)
            if bank is not None:  # slots are written anew, and stacks grow, between steps
                bank.write(luck.randint(1, 3), random_weights(model, luck))
    finally:
        torch.set_num_threads(before)


def is_native(model: Decoder, batch: ForwardBatch) -> bool:
    """Whether the kernels compute the whole of a step; what they write they write again."""
    native = NativeLayers.of(model.config, model._layers)
    assert native is not None
    x = model.embedded(batch.token_ids)
    return native.apply(x, model._tables(batch), batch) is not None


@pytest.mark.parametrize("piece", [1, 3])
def test_a_sequence_alone_has_the_same_bits_in_its_own_cache(models, piece):
    model = models("qwen3", "int8")
    caches = [SequenceCache(model.config, model.dtype, CPU) for _ in range(2)]
    ids = torch.arange(60) % 90
    with torch.inference_mode():
        for tokens in ids.split(piece):
            positions = torch.arange(caches[0].length, caches[0].length + len(tokens))
            batch = ForwardBatch(token_ids=tokens, positions=positions, attention=caches[0])
            assert is_native(model, batch)
            other = ForwardBatch(
                token_ids=tokens, positions=positions, attention=LayerByLayer(caches[1])
            )
            assert torch.equal(model.forward(batch), model.forward(other))
            for one in caches:
                one.advance(len(tokens))


@pytest.mark.parametrize("variant", list(variants("qwen3")))
def test_keys_and_values_in_8_bits_give_the_same_bits_too(tmp_path, variant):
    wanted = {**variants("qwen3")[variant], "head_dim": 32}
    if "sliding_window" in wanted:
        wanted["sliding_window"] = 20
    make_model(wanted).save_pretrained(tmp_path)
    model = load_bfloat16(tmp_path, "int8")
    luck = chance(1)
    servers = [Server(model, 2, "int8") for _ in range(2)]
    alone = SequenceCache(model.config, model.dtype, CPU, "int8")
    with torch.inference_mode():
        for step in range(7):  # over some blocks
            tokens = [[luck.randrange(97) for _ in range(8 - step % 2 - i)] for i in range(2)]
            ours, theirs = (server.batch(tokens, None) for server in servers)
            assert is_native(model, ours)
            hidden = model.forward(ours)
            assert torch.equal(hidden, model.forward(layer_by_layer(theirs)))
            ids = torch.tensor(tokens[1])
            positions = torch.arange(alone.length, alone.length + len(ids))
            batch = ForwardBatch(token_ids=ids, positions=positions, attention=alone)
            assert is_native(model, batch)
            assert torch.equal(model.forward(batch), hidden[-len(ids) :])
            alone.advance(len(ids))


def test_long_rows_many_rows_and_gradients_are_left_to_torch(models):
    model = models("llama", "dense")
    server = Server(model, 2)
    with torch.inference_mode():
        assert not is_native(model, server.batch([[1] * (MAX_TOKENS + 1), [2]], None))
        many = Server(model, 60)
        assert is_native(model, many.batch([[1]] * 60, None))
        assert not is_native(model, Server(model, 50).batch([[1, 2]] * 50, None))
    server = Server(model, 1)
    batch = server.batch([[1]], None)
    native = NativeLayers.of(model.config, model._layers)
    assert native is not None
    x = model.embedded(batch.token_ids).requires_grad_()
    assert native.apply(x, model._tables(batch), batch) is None


def test_models_with_other_parts_are_left_to_torch(tmp_path):
    make_model(next(iter(variants("gemma2").values()))).save_pretrained(tmp_path)
    assert load_bfloat16(tmp_path, "dense")._native is None
    make_model(next(iter(variants("llama").values()))).save_pretrained(tmp_path / "llama")
    in_float = open_model(tmp_path / "llama").load(device=CPU, dtype=torch.float32)
    assert isinstance(in_float, Decoder)
    assert in_float._native is None
