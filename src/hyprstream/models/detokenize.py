"""Tokens to text, all at once or one by one, on any vocabulary.

Text is defined by bytes: every token spells some bytes, a text is their concatenation read
as UTF-8, and what is not UTF-8 becomes U+FFFD. A stream therefore needs to remember no more
than an unfinished character. The `tokenizers` library differs in one case: a run of byte
tokens with one bad byte loses all its characters there; here only the bad byte is lost.
"""

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What the WordPiece decoder of `tokenizers` tidies up, within each token.
_TIDY = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


# GPT-2's alphabet: letter -> byte. Bytes without a glyph have letters from U+0100 on.
_SHOWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = sorted(set(range(256)) - set(_SHOWN))
_BYTE_OF = {ord_: ord_ for ord_ in _SHOWN} | {256 + i: byte for i, byte in enumerate(_HIDDEN)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How a vocabulary writes the bytes of its tokens.

    Attributes:
        byte_letters: Tokens are written in GPT-2's alphabet, one letter per byte.
        byte_tokens: `<0x0A>` is the byte 10.
        replacements: What to replace in a token, in order.
        separator: Stands before every token but the first.
        continuation: Start of tokens that continue a word: no separator, not itself text.
        tidy: Drop the blank before English punctuation, as BERT's decoder does.
        strip_first_blank: The text does not show the blank that it begins with.
    """

    byte_letters: bool = False
    byte_tokens: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    separator: str = ""
    continuation: str = ""
    tidy: bool = False
    strip_first_blank: bool = False

    def spell(self, token: str, *, first: bool, added: bool) -> bytes:
        """Return the bytes that `token` stands for.

        Args:
            token: As the vocabulary writes it.
            first: No token is before it.
            added: It was added to the vocabulary as it reads, not in an alphabet.
        """
        if self.byte_letters:
            if added or not _BYTE_OF.keys() >= set(map(ord, token)):
                return token.encode()
            return token.translate(_BYTE_OF).encode("latin-1")
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if not first:
            if self.continuation and token.startswith(self.continuation):
                token = token.removeprefix(self.continuation)
            else:
                token = self.separator + token
        if self.tidy:
            for old, new in _TIDY:
                token = token.replace(old, new)
        return token.encode()


class Detokenizer:
    """Turns the tokens of one vocabulary into text.

    Ids outside the vocabulary spell nothing: models are padded with rows that no token has.
    """

    def __init__(
        self,
        *,
        token_of: Callable[[int], str | None],
        spelling: Spelling,
        added_ids: frozenset[int],
        control_ids: frozenset[int],
    ) -> None:
        """Keep what is needed to spell tokens.

        Args:
            token_of: id -> token as the vocabulary writes it.
            spelling: How it writes them.
            added_ids: Tokens that were added to it.
            control_ids: Tokens that are no part of a text.
        """
        self._token_of = token_of
        self._spelling = spelling
        self._added_ids = added_ids
        self.control_ids = control_ids

    @property
    def strips_first_blank(self) -> bool:
        """Tell whether a text loses the blank that it begins with."""
        return self._spelling.strip_first_blank

    def shows(self, token_id: int, *, skip_special: bool) -> bool:
        """Tell whether `token_id` takes part in a text."""
        return not (skip_special and token_id in self.control_ids)

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        """Return the bytes that `token_id` adds to a text, at its start or within it."""
        token = self._token_of(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        return self._spelling.spell(token, first=first, added=token_id in self._added_ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool, continues: bool) -> str:
        """Return the text of `ids`; see `StreamDecoder` for the arguments."""
        shown = [i for i in ids if self.shows(i, skip_special=skip_special)]
        pieces = [self.piece(i, first=n == 0 and not continues) for n, i in enumerate(shown)]
        text = b"".join(pieces)
        if self.strips_first_blank and not continues:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")


class StreamDecoder:
    """Turns tokens into text as they come.

    What was handed out never changes, never ends within a character, and all of it together
    is exactly what `decode` makes of all tokens; `test_tokenizer_stream.py` checks this.
    """

    def __init__(
        self, detokenizer: Detokenizer, *, skip_special: bool = True, continues: bool = False
    ) -> None:
        """Start a text.

        Args:
            detokenizer: Of the vocabulary that the tokens are from.
            skip_special: Leave control tokens out.
            continues: The text goes on from a prompt, so its first word keeps its blank.
        """
        self._detokenizer = detokenizer
        self._skip_special = skip_special
        self._first = not continues
        self._strip_blank = detokenizer.strips_first_blank and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is certain now and was not before."""
        if not self._detokenizer.shows(token_id, skip_special=self._skip_special):
            return ""
        piece = self._detokenizer.piece(token_id, first=self._first)
        self._first = False
        if self._strip_blank and piece:
            piece = piece.removeprefix(b" ")
            self._strip_blank = False
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """End the text; return what was held back, U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)
