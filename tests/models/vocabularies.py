"""Small vocabularies for tests, as the metadata of a GGUF would describe them."""

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent.parent / "golden" / "tokenizers.json"


def golden() -> dict[str, Any]:
    """Ids that llama.cpp gives with the vocabularies below."""
    loaded: dict[str, Any] = json.loads(GOLDEN.read_text())
    return loaded


def bpe_metadata(pre: str = "gpt-2") -> dict[str, Any]:
    """1,000 byte-level tokens learnt on whole lines, so that cutting shows in the ids."""
    return golden()["bpe"]["metadata"] | {"tokenizer.ggml.pre": pre}


def spm_metadata() -> dict[str, Any]:
    """The 512 tokens of stories260K, and four more."""
    metadata: dict[str, Any] = golden()["spm"]["metadata"]
    return metadata


BERT_TOKENS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("he", "##llo", "wor", "##ld", "un", "##able", "!", ".", ",", "'", "s", "don", "do"),
    *("not", "a", "b", "##a", "##b", "\u65e5"),
)


def bert_metadata() -> dict[str, Any]:
    """A WordPiece vocabulary as llama.cpp's converter writes it: word starts are marked."""
    texts = [
        token
        if token.startswith("[")
        else token.removeprefix("##")
        if token.startswith("##")
        else f"\u2581{token}"
        for token in BERT_TOKENS
    ]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(texts) - 5),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
    }
