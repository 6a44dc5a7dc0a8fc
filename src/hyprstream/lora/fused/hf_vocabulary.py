"""The vocabulary of a GGUF file as the tokenizer files that transformers reads.

The encoder is the one that answers here, written out; what GGUF leaves to the program, how
tokens become text again, is added as the file that most models come with says it.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders

from hyprstream.errors import UnsupportedTokenizerError
from hyprstream.models.detokenize import Spelling
from hyprstream.models.gguf_vocab import read_gguf_vocabulary
from hyprstream.models.tokenizer_files import ROLES
from hyprstream.models.vocabulary import Vocabulary

_NONE = "no_vocab"  # as llama.cpp has it


def write_vocabulary(
    place: Path, metadata: dict[str, Any], context_length: int
) -> dict[str, object]:
    """Write the tokenizer files of a model; return what its settings say of tokens.

    Nothing is written for a file that has no vocabulary.

    Args:
        place: The folder.
        metadata: Of the GGUF file.
        context_length: Most tokens of a text.

    Raises:
        CorruptTokenizerError: The metadata breaks the rules of the format.
        UnsupportedTokenizerError: The vocabulary is of a kind that is not known here.
    """
    if metadata.get("tokenizer.ggml.model", _NONE) == _NONE:
        return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    vocabulary = read_gguf_vocabulary(metadata)
    backend = tokenizers.Tokenizer.from_str(vocabulary.backend.to_str())
    backend.decoder = _decoder(vocabulary.spelling)
    (place / "tokenizer.json").write_text(backend.to_str(pretty=True), "utf-8")
    roles = {r: text for r, text in vocabulary.special_tokens.items() if r in ROLES}
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **roles,
        **_templates(vocabulary),
    }
    _write_json(place / "tokenizer_config.json", settings)
    ends = sorted(vocabulary.eos_ids)
    tokens: dict[str, object] = {
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": backend.token_to_id(roles["pad_token"]) if "pad_token" in roles else None,
    }
    _write_json(place / "generation_config.json", tokens)
    return tokens


def _decoder(spelling: Spelling) -> Any:
    if spelling.byte_letters:
        return decoders.ByteLevel()
    if not spelling.byte_tokens:
        raise UnsupportedTokenizerError(
            "a vocabulary of whole words is not turned into tokenizer files here",
            hint="Write a GGUF file instead.",
        )
    steps: list[Any] = [decoders.Replace(old, new) for old, new in spelling.replacements]
    steps += [decoders.ByteFallback(), decoders.Fuse()]
    if spelling.strip_first_blank:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _templates(vocabulary: Vocabulary) -> dict[str, object]:
    templates = vocabulary.chat_templates
    if not templates:
        return {}
    if set(templates) == {"default"}:
        return {"chat_template": templates["default"]}
    return {"chat_template": [{"name": n, "template": text} for n, text in templates.items()]}


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
