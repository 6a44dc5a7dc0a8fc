"""Tiny vocabularies, and answers that random logits give under a grammar."""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from hyprstream.engine.grammar import GrammarCompiler
from hyprstream.engine.request import Grammar, SamplingParams, TokenEvent
from hyprstream.engine.sampler import RowSampler
from hyprstream.models.tokenizer import Tokenizer

LETTERS = [bytes([byte]) for byte in (10, *range(32, 127))]
PIECES = [b"ab", b'{"', b'": ', b'"}', b"}\n", b", ", b"true", b"12", b"\xc3", b"\xa9", b"  "]
TINY = [*LETTERS, *PIECES, b"", b"<end>", b"<tool>"]
EOS, TOOL = len(TINY) - 2, len(TINY) - 1


def tiny_compiler(**options: int) -> GrammarCompiler:
    return GrammarCompiler(TINY, special_ids={EOS, TOOL}, **options)


def compiler_of(tokenizer: Tokenizer, vocab_size: int) -> GrammarCompiler:
    tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
    tags = {i for i, token in enumerate(tokens) if token.startswith(b"<") and token.endswith(b">")}
    controls = {i for i in tags if not tokenizer.decode([i])}
    return GrammarCompiler(tokens, special_ids=controls | tokenizer.eos_ids)


def answer(
    compiler: GrammarCompiler,
    grammar: Grammar,
    *,
    vocab_size: int = len(TINY),
    eos_ids: Collection[int] = (EOS,),
    favour: dict[int, float] | None = None,
    logits_seed: int = 0,
    max_tokens: int = 400,
    **params: Any,
) -> list[TokenEvent]:
    """Generate from random logits, in which the tokens of `favour` have more."""
    sampler = RowSampler(
        SamplingParams(grammar=grammar, max_tokens=max_tokens, **({"seed": 0} | params)),
        (),
        eos_ids,
        vocab_size,
        constraint=compiler.compile(grammar),
    )
    generator = torch.Generator().manual_seed(logits_seed)
    events: list[TokenEvent] = []
    while not events or events[-1].finish is None:
        row = torch.randn(vocab_size, generator=generator)
        for token_id, more in (favour or {}).items():
            row[token_id] += more
        events.append(sampler.next(row, room=10_000))
    return events


def spelled(events: Sequence[TokenEvent], tokens: Sequence[bytes] = TINY) -> bytes:
    return b"".join(tokens[event.token_id] for event in events if not event.is_stop)
