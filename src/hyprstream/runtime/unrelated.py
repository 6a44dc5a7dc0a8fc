"""What the base model itself says to questions about this and that: text to stay good on.

It needs nobody's data, and has to do with nothing that an adapter learns. Every adapter is
judged by it, so that learning is safe before anybody has named a trusted set.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hyprstream.engine.request import SamplingParams
from hyprstream.files import storage, write_atomic
from hyprstream.refs import ModelFingerprint
from hyprstream.runtime.model import Model
from hyprstream.train.sample import Sample

_QUESTIONS = (
    "What is a lighthouse for?",
    "Name three vegetables and say how to cook one of them.",
    "Why is the sky blue?",
    "Write two sentences about a winter morning.",
    "How does a bicycle stay upright?",
    "What should I pack for a weekend at the sea?",
    "Explain what a prime number is.",
    "Tell a very short story about a cat and a train.",
    "What does a librarian do all day?",
    "How do I keep a houseplant alive?",
    "What is the difference between a river and a canal?",
    "Give advice to somebody who cannot sleep.",
    "Which planets have rings?",
    "How is bread made?",
    "Describe the sound of rain.",
    "What is inflation in an economy?",
    "Suggest a name for a small bakery, and say why.",
    "How do vaccines work?",
    "What happens when water freezes?",
    "Write a polite note to a neighbour about noise.",
    "Why do leaves change colour in autumn?",
    "What is a good way to learn the guitar?",
    "Who was Ada Lovelace?",
    "How long should I boil an egg?",
)
_MAX_TOKENS = 48  # of an answer: enough to be worse on, little to wait for
_MIN_TOKENS = 8
_TEMPERATURE = 0.8
_FORMAT = 1
_KEPT = TypeAdapter(list[tuple[tuple[int, ...], tuple[int, ...]]])


def unrelated_samples(
    model: Model, folder: Path, tell: Callable[[int, int], None] = lambda *_: None
) -> list[Sample]:
    """Return what a model says to questions about this and that; written once for each model.

    Args:
        model: The base model; an adapter that it answers with has no part in this.
        folder: Where it is kept.
        tell: Told before each answer that is written: how many there are, of how many.

    Raises:
        UnsupportedError: The model is an encoder.
        StorageFullError: The disk is full.
    """
    file = folder / f"{_key(model.fingerprint)}.json"
    kept = _read(file)
    if kept is None:
        kept = []
        for number, question in enumerate(_QUESTIONS):
            tell(number, len(_QUESTIONS))
            kept.append(_answered(model, question, number))
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, _KEPT.dump_json(kept), scratch=folder)
    return [Sample.answer(prompt, answer) for prompt, answer in kept]


def _answered(model: Model, question: str, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of a question and of the model's answer to it."""
    params = SamplingParams(
        max_tokens=_MAX_TOKENS, min_tokens=_MIN_TOKENS, temperature=_TEMPERATURE, seed=seed
    )
    if model.has_chat_template:
        messages = [{"role": "user", "content": question}]
        prompt, done = model.chat_tokens(messages), model.chat(messages, params)
    else:
        text = f"{question}\n"
        prompt, done = model.tokenizer.encode(text), model.generate(text, params)
    return tuple(prompt), tuple(token.token_id for token in done.tokens)


def _key(fingerprint: ModelFingerprint) -> str:
    parts = [_FORMAT, fingerprint.config_sha256, fingerprint.weights_sha256, *_QUESTIONS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(file: Path) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    try:
        kept = _KEPT.validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    sound = len(kept) == len(_QUESTIONS) and all(
        prompt and answer and min((*prompt, *answer)) >= 0 for prompt, answer in kept
    )
    return kept if sound else None
