"""Text to tokens and back.

One class over two sources: the tokenizer.json of a model folder, and the vocabulary inside
a GGUF file. Encoding is done by the Rust library `tokenizers`, decoding by `detokenize`.
A `Tokenizer` does not change after it was made and may be used from several threads.

Control tokens (`<|im_start|>`, `</s>`, ...) steer a model, so text may not become one
unless the caller says that it is meant to: see `encode`, and `guard` for texts in which
some are meant and some are not.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import AddedToken, normalizers

from hyprstream.errors import CorruptTokenizerError, InvalidRequestError
from hyprstream.models.detokenize import Detokenizer, StreamDecoder
from hyprstream.models.gguf_vocab import read_gguf_vocabulary
from hyprstream.models.tokenizer_files import read_tokenizer_folder
from hyprstream.models.vocabulary import Vocabulary, is_library_failure

# Unicode guarantees that this is never a character of a text.
_GUARD = "\ufdd0"


class Tokenizer:
    """The vocabulary of one model.

    Attributes:
        bos_id: Begin-of-sequence token, if the model has one.
        eos_ids: Every token that ends a generation.
        special_tokens: What chat templates may name: `bos_token` -> `<s>`.
        chat_templates: The model's Jinja sources by name, `default` among them.

    Example:
        >>> tokenizer = Tokenizer.from_folder(Path("model"))  # doctest: +SKIP
        >>> tokenizer.decode(tokenizer.encode("Hello"))  # doctest: +SKIP
        'Hello'
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        backend = vocabulary.backend
        added = backend.get_added_tokens_decoder()
        self._parsing = _copy(backend, added, escape_special=False)
        self._plain = _copy(backend, added, escape_special=True)
        controls = {i: token.content for i, token in added.items() if token.special}
        self._detokenizer = Detokenizer(
            token_of=backend.id_to_token,
            spelling=vocabulary.spelling,
            added_ids=frozenset(added),
            control_ids=frozenset(controls),
        )
        self._guarding = _copy(backend, added, escape_special=False, drop=_GUARD)
        # A lookahead, so that overlapping control tokens are all found.
        longest_first = sorted(controls.values(), key=len, reverse=True)
        names = "|".join(re.escape(name) for name in longest_first if len(name) > 1)
        self._control_start = re.compile(f"(?=(?:{names})).", re.DOTALL) if names else None
        self._kind = vocabulary.kind
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        self.special_tokens = dict(vocabulary.special_tokens)
        self.chat_templates = dict(vocabulary.chat_templates)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load the tokenizer of a Hugging Face model folder.

        Raises:
            ModelNotFoundError: The folder has no tokenizer.json.
            CorruptTokenizerError: A file of the tokenizer is damaged.
            UnsupportedTokenizerError: The tokenizer is of a kind that is not implemented.
        """
        return cls(read_tokenizer_folder(folder))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Build the tokenizer that the metadata of a GGUF file describes.

        Raises:
            CorruptTokenizerError: The metadata breaks the rules of the format.
            UnsupportedTokenizerError: The vocabulary's kind, or its pre-tokenizer, is not
                one that is implemented.
        """
        return cls(read_gguf_vocabulary(metadata))

    @property
    def vocab_size(self) -> int:
        """Count the tokens, added ones included; the model may have more rows."""
        return self._plain.get_vocab_size()

    @property
    def description(self) -> str:
        """Say in a few words what the vocabulary is."""
        return f"{self._kind}, {self.vocab_size} tokens"

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of control tokens, which are no part of a text."""
        return frozenset(self._detokenizer.control_ids)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source for ordinary chats, if the model has one."""
        return self.chat_templates.get("default")

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn `text` into tokens.

        Added tokens that are no control tokens (`<tool_call>` of Qwen) are always parsed:
        models are trained to read and write them as text.

        Args:
            text: Any Unicode text.
            add_special: Begin and end with the tokens that the model wants there.
            parse_special: Read control tokens in `text` as such; otherwise they are text.

        Raises:
            InvalidRequestError: `text` holds a lone surrogate and is thus no Unicode text.
            CorruptTokenizerError: The vocabulary cannot express `text`.
        """
        return _encode(
            self._parsing if parse_special else self._plain, text, add_special=add_special
        )

    def guard(self, text: str) -> str:
        """Mark the control tokens in `text`, so that `encode_guarded` takes them as text.

        The mark is one character that no text holds, after the first one of each. A control
        token of a single character cannot be marked; no known model has one.
        """
        if self._control_start is None:
            return text
        return self._control_start.sub(rf"\g<0>{_GUARD}", text)

    def encode_guarded(self, text: str) -> list[int]:
        """Turn `text` into tokens, parsing control tokens except those that `guard` marked.

        Nothing is added. Without marks this is `encode(parse_special=True)`.

        Raises:
            InvalidRequestError: `text` holds a lone surrogate and is thus no Unicode text.
            CorruptTokenizerError: The vocabulary cannot express `text`.
        """
        return _encode(self._guarding if _GUARD in text else self._parsing, text, add_special=False)

    def decode(
        self, ids: Iterable[int], *, skip_special: bool = True, continues: bool = False
    ) -> str:
        """Turn tokens into text; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Tokens; ids that the vocabulary does not have add nothing.
            skip_special: Leave control tokens out.
            continues: The text goes on from another, so its first word keeps its blank.
        """
        return self._detokenizer.decode(ids, skip_special=skip_special, continues=continues)

    def stream(self, *, skip_special: bool = True, continues: bool = False) -> StreamDecoder:
        """Start turning tokens into text one by one; arguments as for `decode`."""
        return StreamDecoder(self._detokenizer, skip_special=skip_special, continues=continues)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds within a text; control tokens read as written."""
        return self._detokenizer.piece(token_id)

    def token_text(self, token_id: int) -> str:
        """Return what a token adds within a text; a part of a character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")


def _copy(
    backend: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    *,
    escape_special: bool,
    drop: str | None = None,
) -> tokenizers.Tokenizer:
    """Make an encoder that shares the model of `backend` and treats control tokens its way.

    Args:
        backend: The encoder to share.
        added: Its added tokens.
        escape_special: Control tokens in a text are text.
        drop: What is to be dropped from what is not an added token.
    """
    copy = tokenizers.Tokenizer(backend.model)
    copy.normalizer, copy.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    copy.post_processor = backend.post_processor
    copy.add_tokens([token for _, token in sorted(added.items())])
    copy.encode_special_tokens = escape_special
    if drop is not None:
        steps = [normalizers.Replace(drop, ""), backend.normalizer]
        copy.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    return copy


def _encode(backend: tokenizers.Tokenizer, text: str, *, add_special: bool) -> list[int]:
    try:
        return backend.encode(text, add_special_tokens=add_special).ids
    except TypeError as error:
        raise InvalidRequestError(
            f"the text holds a lone surrogate: {text[:60]!a}",
            hint="Send text that can be written as UTF-8.",
        ) from error
    except BaseException as error:
        if not is_library_failure(error):
            raise
        raise CorruptTokenizerError(
            f"the tokenizer cannot encode a text of {len(text)} characters: {error}",
            hint="Its files are damaged or incomplete; fetch them again.",
        ) from error
