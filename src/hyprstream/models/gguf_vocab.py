"""The vocabulary inside a GGUF file, made into an encoder of the `tokenizers` library.

Follows llama.cpp's reading of the `tokenizer.ggml.*` keys, because the files are written
for it. The metadata comes from outside: every type, length and id is checked here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from hyprstream.errors import CorruptTokenizerError, UnsupportedTokenizerError
from hyprstream.models.detokenize import Spelling
from hyprstream.models.gguf_keys import GgufKeys
from hyprstream.models.pretokenizers import byte_level_splitter, word_rule
from hyprstream.models.vocabulary import Vocabulary

# Values of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

_BLANK = "\u2581"  # SentencePiece's letter for a blank
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_MAX_WORD_CHARS = 100  # BERT calls longer words unknown

# Tokens that end a turn or a text. Many files name only one of theirs in the metadata, so
# they are known by their text, as in llama.cpp.
_END_TOKENS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *(
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        f"<\uff5cend{_BLANK}of{_BLANK}sentence\uff5c>",
    ),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
)
# Phi-3 swallows the white space after its control tokens, except these.
_PHI3_KEEPS_BLANK = ("<unk>", "<s>", "<|endoftext|>")

_ROLE_KEYS = {
    "bos_token": ("bos_token_id", "cls_token_id"),
    "eos_token": ("eos_token_id",),
    "eot_token": ("eot_token_id",),
    "eom_token": ("eom_token_id",),
    "unk_token": ("unknown_token_id",),
    "sep_token": ("seperator_token_id",),  # spelled so by the format
    "pad_token": ("padding_token_id",),
    "cls_token": ("cls_token_id",),
    "mask_token": ("mask_token_id",),
}
_SPM_ROLES = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
_BERT_ROLES = {
    "bos_token": 101,
    "unk_token": 100,
    "sep_token": 102,
    "pad_token": 0,
    "cls_token": 101,
    "mask_token": 103,
}

Merge = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """The token table, and which ids have a role in it."""

    texts: Sequence[str]
    types: Sequence[int]
    roles: Mapping[str, int]

    @property
    def control_texts(self) -> set[str]:
        return {
            text
            for text, kind in zip(self.texts, self.types, strict=True)
            if kind in (_CONTROL, _UNKNOWN)
        }


def read_gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Build the vocabulary that GGUF `metadata` describes.

    Raises:
        CorruptTokenizerError: The metadata breaks the rules of the format.
        UnsupportedTokenizerError: The vocabulary's kind, or its pre-tokenizer, is not one
            that is implemented.
    """
    keys = GgufKeys(metadata)
    kind = keys.text("model")
    if kind == "llama":
        return _sentencepiece(keys)
    if kind == "gpt2":
        return _byte_level_bpe(keys)
    if kind == "bert":
        return _wordpiece(keys)
    raise UnsupportedTokenizerError(
        f"GGUF vocabulary type {kind!r} is not supported", hint="Supported: bert, gpt2, llama."
    )


def _sentencepiece(keys: GgufKeys) -> Vocabulary:
    tokens = _mark_ends(_read_tokens(keys, roles=_SPM_ROLES), merges=())
    scores = keys.floats("scores", count=len(tokens.texts))
    unk_id = tokens.roles.get("unk_token")
    model = models.BPE(
        vocab=_ids_by_text(tokens.texts),
        merges=_merges_by_score(tokens, scores),
        unk_token=None if unk_id is None else tokens.texts[unk_id],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    add_blank = keys.flag("add_space_prefix", default=True)
    escape = normalizers.Replace(" ", _BLANK)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_BLANK), escape]) if add_blank else escape
    )
    phi3 = re.search(r"phi-?3", str(keys.general_name).lower()) is not None
    _add_special_tokens(backend, tokens, rstrip=phi3)
    _frame(backend, keys, tokens, add_bos=True)
    spelling = Spelling(
        byte_tokens=True, replacements=((_BLANK, " "),), strip_first_blank=add_blank
    )
    return _vocabulary(keys, tokens, backend, spelling, kind="SentencePiece")


def _byte_level_bpe(keys: GgufKeys) -> Vocabulary:
    pre = keys.text("pre", default="default")
    rule = word_rule(pre)
    merges = [_split_merge(merge) for merge in dict.fromkeys(keys.texts("merges"))]
    tokens = _mark_ends(_read_tokens(keys, roles={}), merges=merges)
    controls = tokens.control_texts
    try:
        model = models.BPE(
            vocab=_ids_by_text(tokens.texts),
            # Text must never merge into a control token.
            merges=[merge for merge in merges if merge[0] + merge[1] not in controls],
            ignore_merges=rule.ignore_merges,
        )
    except Exception as error:  # tokenizers raises nothing narrower
        raise CorruptTokenizerError(f"tokenizer.ggml.merges: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = byte_level_splitter(rule)
    _add_special_tokens(backend, tokens)
    _frame(backend, keys, tokens, add_bos=rule.add_bos)
    spelling = Spelling(byte_letters=True)
    return _vocabulary(keys, tokens, backend, spelling, kind=f"BPE ({pre})")


def _wordpiece(keys: GgufKeys) -> Vocabulary:
    tokens = _read_tokens(keys, roles=_BERT_ROLES)
    controls = tokens.control_texts
    # Files mark the start of a word; BERT marks what continues one.
    texts = [text if text in controls else _bert_text(text) for text in tokens.texts]
    tokens = replace(tokens, texts=texts)
    unk_id = tokens.roles.get("unk_token")
    if unk_id is None:
        raise CorruptTokenizerError("a BERT vocabulary without an unknown token")
    backend = tokenizers.Tokenizer(
        models.WordPiece(
            vocab=_ids_by_text(texts),
            unk_token=texts[unk_id],
            max_input_chars_per_word=_MAX_WORD_CHARS,
        )
    )
    lowercase = keys.flag("normalizer.lowercase", default=True)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=keys.flag("normalizer.strip_accents", default=lowercase),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _add_special_tokens(backend, tokens)
    _frame(backend, keys, tokens, add_bos=True, end="sep_token")
    spelling = Spelling(separator=" ", continuation="##", tidy=True)
    return _vocabulary(keys, tokens, backend, spelling, kind="WordPiece")


def _bert_text(text: str) -> str:
    if text.startswith(_BLANK):
        return text.removeprefix(_BLANK)
    if text.startswith("[") and text.endswith("]"):  # [unused0], whatever its type says
        return text
    return f"##{text}"


def _read_tokens(keys: GgufKeys, *, roles: Mapping[str, int]) -> _Tokens:
    texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(keys.texts("tokens"))]
    num_tokens = len(texts)
    types = keys.integers("token_type", count=num_tokens)
    if types is None:
        types = [_BYTE if _BYTE_TOKEN.fullmatch(text) else _NORMAL for text in texts]
    found = {role: i for role, i in roles.items() if i < num_tokens}
    for role, names in _ROLE_KEYS.items():
        for name in reversed(names):
            if (i := keys.token_id(name, num_tokens=num_tokens)) is not None:
                found[role] = i
    return _Tokens(texts=texts, types=types, roles=found)


def _mark_ends(tokens: _Tokens, *, merges: Sequence[Merge]) -> _Tokens:
    """Give tokens that end a text the type that they have, whatever the file says.

    A normal token that merges make is text that only looks like one: `</s>` is also HTML.
    """
    types = list(tokens.types)
    wanted = set(_END_TOKENS)
    for i, text in enumerate(tokens.texts):
        if text in wanted and types[i] != _CONTROL:
            is_text = types[i] == _NORMAL and any(a + b == text for a, b in merges)
            types[i] = _NORMAL if is_text else _CONTROL
    return replace(tokens, types=types)


def _ids_by_text(texts: Sequence[str]) -> dict[str, int]:
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != len(texts):
        i, text = next((i, text) for i, text in enumerate(texts) if ids[text] != i)
        raise CorruptTokenizerError(
            f"tokenizer.ggml.tokens holds {text!r} twice, as {i} and {ids[text]}"
        )
    return ids


def _split_merge(merge: str) -> Merge:
    left, blank, right = merge.partition(" ")
    if not blank:
        raise CorruptTokenizerError(f"tokenizer.ggml.merges holds {merge!r}, which is no pair")
    return left, right


def _merges_by_score(tokens: _Tokens, scores: Sequence[float]) -> list[Merge]:
    """Rebuild the merges that SentencePiece keeps implicit.

    It joins whichever neighbours form the token with the highest score. So each way to cut
    a token into two tokens is a merge, and tokens with higher scores come first. Control
    and byte tokens are never made from text.
    """
    made = {
        text: -score
        for text, kind, score in zip(tokens.texts, tokens.types, scores, strict=True)
        if kind not in (_CONTROL, _UNKNOWN, _BYTE)
    }
    ranked = [
        (rank, left, right)
        for text, rank in made.items()
        for cut in range(1, len(text))
        if (left := text[:cut]) in made and (right := text[cut:]) in made
    ]
    ranked.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in ranked]


def _add_special_tokens(
    backend: tokenizers.Tokenizer, tokens: _Tokens, *, rstrip: bool = False
) -> None:
    backend.add_tokens(
        [
            AddedToken(
                text,
                special=kind != _USER_DEFINED,
                normalized=False,
                rstrip=rstrip and text not in _PHI3_KEEPS_BLANK,
            )
            for text, kind in zip(tokens.texts, tokens.types, strict=True)
            if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED)
        ]
    )


def _frame(
    backend: tokenizers.Tokenizer,
    keys: GgufKeys,
    tokens: _Tokens,
    *,
    add_bos: bool,
    end: str = "eos_token",
) -> None:
    """Have prompts begin and end with the tokens that the file asks for."""
    is_bert = end == "sep_token"
    wanted = {
        "bos_token": is_bert or keys.flag("add_bos_token", default=add_bos),
        end: is_bert or keys.flag("add_eos_token", default=False),
    }
    frame = {role: tokens.roles.get(role) for role, is_wanted in wanted.items() if is_wanted}
    for role, i in frame.items():
        if i is None:
            raise CorruptTokenizerError(f"prompts are to have a {role}, and the file names none")
    before, after = ([role] if role in frame else [] for role in wanted)
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=list(frame.items())
    )


def _vocabulary(
    keys: GgufKeys,
    tokens: _Tokens,
    backend: tokenizers.Tokenizer,
    spelling: Spelling,
    *,
    kind: str,
) -> Vocabulary:
    roles = dict(tokens.roles)
    ends = {roles[role] for role in ("eos_token", "eot_token", "eom_token") if role in roles}
    wanted = set(_END_TOKENS)
    by_text = {
        text: i
        for i, (text, type_) in enumerate(zip(tokens.texts, tokens.types, strict=True))
        if type_ == _CONTROL and text in wanted
    }
    if by_text.keys() >= {"<|return|>", "<|call|>"}:
        by_text.pop("<|end|>", None)  # gpt-oss ends the parts of an answer with it
    return Vocabulary(
        kind=kind,
        backend=backend,
        spelling=spelling,
        bos_id=roles.get("bos_token"),
        eos_ids=frozenset({*ends, *by_text.values()}),
        special_tokens={role: tokens.texts[i] for role, i in roles.items()},
        chat_templates=keys.chat_templates(),
    )
