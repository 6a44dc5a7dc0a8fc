"""What the two sources of a tokenizer, its files and a GGUF, have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import tokenizers

from hyprstream.models.detokenize import Spelling


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Everything that a `Tokenizer` is made of.

    Attributes:
        kind: What sort of vocabulary it is, for people.
        backend: The encoder. Special tokens among its added tokens are control tokens.
        spelling: How tokens write their bytes.
        bos_id: Begin-of-sequence token.
        eos_ids: Every token that ends a generation.
        special_tokens: What templates may name: `bos_token` -> `<s>`.
        chat_templates: Jinja sources by name; `default` is the one for ordinary chats.
    """

    kind: str
    backend: tokenizers.Tokenizer
    spelling: Spelling
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)


def is_library_failure(error: BaseException) -> bool:
    """Tell whether `error` may come from `tokenizers`.

    It raises plain Exception for what it foresaw. What it did not foresee is a panic of its
    Rust, which has a type of its own outside of Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
