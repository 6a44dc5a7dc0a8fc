"""Text on which an adapter stays as its base model is: the model's own, so that it needs no data.

A model that is left to itself, from a token drawn at random, says a little of all that it
knows. What it would have said is then what an adapter has to leave alone (`base_pull`). Made
once for a model and a seed, and kept; whoever trains in the foreground and whoever learns
while it serves takes it from here.

Texts come in sheets of 48, each made in one batch and kept in a file of its own, so that a text
is the same whoever asks for how many. An adapter that is held by few texts for long learns those
by heart, and forgets others.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from hyprstream import files
from hyprstream.engine.assembly import build_core
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import run_all
from hyprstream.engine.paged_cache import block_bytes
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.models.decoder import Decoder
from hyprstream.refs import ModelFingerprint, RequestId
from hyprstream.runtime.model import Model
from hyprstream.train.sample import Sample

Tell = Callable[[int, int], None]
"""Told how many texts there are, and how many there will be."""

ANCHOR_SEED = 0
"""Of the text; the same for all trainings of a model, so that it is made once."""

_SHEET_TEXTS = 48
_NUM_HELD_OUT = 8  # of the first sheet, by which is measured what was forgotten
_MOST_SHEETS = 8
_USES = 3  # of a text in a run
TEXT_TOKENS = 64
"""Of each text."""

_FORM = 2  # of the kept file; another one is made anew
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Texts of a base model.

    Attributes:
        pulled: On these a training holds the adapter.
        held_out: By these is measured how far it went all the same.
    """

    pulled: tuple[Sample, ...]
    held_out: tuple[Sample, ...]

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of all texts: what a resumed run has to find again."""
        texts = [sample.token_ids for sample in (*self.held_out, *self.pulled)]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def within(self, num_tokens: int) -> Self:
        """Return the beginnings of the texts, of at most so many tokens that are computed."""
        pulled, held_out = (
            tuple(Sample.text(sample.token_ids[: num_tokens + 1]) for sample in samples)
            for samples in (self.pulled, self.held_out)
        )
        return replace(self, pulled=pulled, held_out=held_out)


def num_sheets(num_tokens: int) -> int:
    """Return how many sheets a run wants that is held by so many tokens of text in all its steps.

    Example:
        >>> [num_sheets(steps * 256) for steps in (10, 100, 1000)]
        [1, 3, 8]
    """
    num_pulled = -(-num_tokens // (_USES * TEXT_TOKENS))
    return max(1, min(_MOST_SHEETS, -(-(num_pulled + _NUM_HELD_OUT) // _SHEET_TEXTS)))


def anchors_for(
    model: Model,
    folder: Path | None = None,
    *,
    sheets: int = 1,
    seed: int = ANCHOR_SEED,
    tell: Tell | None = None,
) -> Anchors:
    """Return the anchors of a model: those that are kept, or new ones, which are kept then.

    Args:
        model: The base; an adapter beside it takes no part.
        folder: Where anchors are kept, by the fingerprint of the model; None keeps none.
        sheets: How many, of 48 texts each.
        seed: Decides all that is random.
        tell: Called before each sheet that has to be made, which takes seconds, and at the end.

    Raises:
        UnsupportedError: The model generates no text.
    """
    texts: list[list[int]] = []
    total, is_told = sheets * _SHEET_TEXTS, False
    for number in range(sheets):
        file = None if folder is None else _file(folder, model, seed, number)
        sheet = None if file is None else kept_texts(file, model.decoder.config.vocab_size)
        if sheet is None:
            if tell is not None:
                tell(len(texts), total)
                is_told = True
            sheet = _generated(model, seed, number)
            if file is not None:
                _keep(file, sheet)
        texts += sheet
    if tell is not None and is_told:
        tell(total, total)
    samples = tuple(Sample.text(text) for text in texts)
    return Anchors(pulled=samples[_NUM_HELD_OUT:], held_out=samples[:_NUM_HELD_OUT])


def _file(folder: Path, model: Model, seed: int, sheet: int) -> Path:
    name = f"{_identity(model.fingerprint)}-{seed}"
    return folder / (f"{name}-{sheet}.json" if sheet else f"{name}.json")


def _identity(of: ModelFingerprint) -> str:
    return hashlib.sha256(f"{of.config_sha256} {of.weights_sha256}".encode()).hexdigest()[:32]


def _generated(model: Model, seed: int, sheet: int) -> list[list[int]]:
    decoder = model.decoder
    vocab_size, context = decoder.config.vocab_size, decoder.config.context_length
    length = min(TEXT_TOKENS + 1, context - 1)
    # Control tokens end or begin something: alone they say nothing of what the model knows.
    control = model.tokenizer.control_ids
    begins = [token for token in range(vocab_size) if token not in control]
    chance = random.Random(f"{seed} {sheet}" if sheet else seed)  # noqa: S311 - no secret
    requests = [
        Request(
            id=RequestId(str(number)),
            token_ids=(chance.choice(begins),),
            params=SamplingParams(
                max_tokens=length, seed=chance.randrange(1 << 31), ignore_eos=True
            ),
        )
        for number in range(_SHEET_TEXTS)
    ]
    events = run_all(build_core(decoder, _config(decoder, length)), requests)
    # Without the token that was drawn: all others look at the first one, and behind one that
    # hardly ever comes first the least change of an adapter is a gradient 700 times the usual.
    return [[e.token.token_id for e in events[request.id] if e.token] for request in requests]


def _config(decoder: Decoder, length: int) -> EngineConfig:
    """Return an engine that holds all texts at a time, and nothing else."""
    usual = EngineConfig()
    blocks = _SHEET_TEXTS * (length // usual.block_tokens + 2)
    size = block_bytes(decoder.config, decoder.dtype, usual.block_tokens)
    return EngineConfig(
        max_sequences=_SHEET_TEXTS,
        kv_memory_bytes=blocks * size,
        num_slots=0,
        prefix_caching=False,
        max_drafts=0,
    )


def kept_texts(file: Path, vocab_size: int) -> list[list[int]] | None:
    """Read kept texts; None if there are none, or if they are damaged or of another form."""
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            return None
        kept = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(kept, dict) or kept.get("form") != _FORM:
        return None
    texts = kept.get("texts")
    if not isinstance(texts, list) or len(texts) != _SHEET_TEXTS:
        return None
    return texts if all(_is_text(text, vocab_size) for text in texts) else None


def _is_text(text: object, vocab_size: int) -> bool:
    return (
        isinstance(text, list)
        and 2 <= len(text) <= TEXT_TOKENS + 1
        and all(type(token) is int and 0 <= token < vocab_size for token in text)
    )


def _keep(file: Path, texts: list[list[int]]) -> None:
    content = json.dumps({"form": _FORM, "texts": texts}).encode()
    with files.storage(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Of processes that do the same at a time each writes a file of its own.
        with TemporaryDirectory(dir=file.parent) as scratch:
            files.write_atomic(file, content, scratch=Path(scratch))
