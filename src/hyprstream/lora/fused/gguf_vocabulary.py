"""The tokenizer.json of a model as the `tokenizer.ggml.*` keys of a GGUF file.

llama.cpp rebuilds a tokenizer from a few tables and the name of a rule. Whatever it would
rebuild differently is refused by name: the model would get other ids than it was trained on.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyprstream.errors import CorruptTokenizerError, UnsupportedTokenizerError
from hyprstream.lora.exchange.gguf_file import Value, entry
from hyprstream.models.load import read_json
from hyprstream.models.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BLANK = "\u2581"  # SentencePiece's letter for a blank
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a tokenizer.json cuts words, and whether it takes whole tokens first -> llama.cpp's name.
_RULES = {
    (_CL100K % "{1,3}", True): "llama-bpe",
    (_CL100K % "{1,3}", False): "dbrx",
    (_CL100K % "", False): "qwen2",
    ("gpt-2", False): "gpt-2",
    ("digits, gpt-2", False): "smollm",
}
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def vocabulary_entries(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """Return the metadata of a model's vocabulary.

    Args:
        folder: Where its tokenizer.json lies.
        tokenizer: The same, read.
        vocab_size: Rows of the embedding; those without a token get one that is never used.

    Raises:
        UnsupportedTokenizerError: llama.cpp has no such tokenizer.
        CorruptTokenizerError: The file contradicts itself.
    """
    description = _description(folder)
    tokens = _Tokens(description, vocab_size)
    model = description["model"]
    if model.get("type") != "BPE":
        raise _refused(f"a vocabulary of type {model.get('type')!r}")
    keys: dict[str, Value] = {"tokens": tokens.texts}
    if model.get("byte_fallback"):
        keys |= {"model": "llama", "pre": "default", "scores": _scores(tokens)}
        keys["add_space_prefix"] = _prepends_blank(description)
    else:
        keys |= {"model": "gpt2", "pre": _rule(description)}
        keys["merges"] = [" ".join(pair) for pair in tokens.merges]
    keys["token_type"] = tokens.types
    for role, key in _ROLES.items():
        text = tokenizer.special_tokens.get(role)
        if text is not None and text in tokens.ids:
            keys[key] = tokens.ids[text]
    # GGUF has no list of what ends a text, but names for two more such tokens.
    others = sorted(tokenizer.eos_ids - {keys.get("eos_token_id")})
    keys |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    ids = tokenizer.encode("a")
    keys["add_bos_token"] = bool(ids) and ids[0] == keys.get("bos_token_id")
    keys["add_eos_token"] = bool(ids) and ids[-1] == keys.get("eos_token_id")
    entries = [entry(f"tokenizer.ggml.{key}", value) for key, value in keys.items() if value != []]
    if tokenizer.chat_template is not None:
        entries.append(entry("tokenizer.chat_template", tokenizer.chat_template))
    return entries


class _Tokens:
    """The token table of a tokenizer.json.

    Attributes:
        texts: One per row of the embedding.
        types: What each is, in GGUF's numbers.
        ids: Text -> row.
        merges: Pairs, the first to be joined first.
    """

    def __init__(self, description: Mapping[str, Any], vocab_size: int) -> None:
        model, added = description["model"], description.get("added_tokens") or []
        self.ids: dict[str, int] = {
            **model["vocab"],
            **{token["content"]: token["id"] for token in added},
        }
        highest = max(self.ids.values(), default=-1)
        if highest >= vocab_size or min(self.ids.values(), default=0) < 0:
            raise CorruptTokenizerError(
                f"the tokenizer has a token {highest}, the model {vocab_size} rows"
            )
        self.texts = [f"[PAD{row}]" for row in range(vocab_size)]
        self.types = [_UNUSED] * vocab_size
        bytes_too = bool(model.get("byte_fallback"))
        for text, row in self.ids.items():
            is_byte = bytes_too and _BYTE_TOKEN.fullmatch(text)
            self.texts[row], self.types[row] = text, _BYTE if is_byte else _NORMAL
        for token in added:
            self.types[token["id"]] = _CONTROL if token.get("special") else _USER_DEFINED
        if model.get("unk_token") in self.ids and bytes_too:
            self.types[self.ids[model["unk_token"]]] = _UNKNOWN
        self.merges = [_pair(merge) for merge in model.get("merges") or []]

    def normal(self) -> list[str]:
        """List the tokens that text is made of, bytes aside."""
        return [t for t, kind in zip(self.texts, self.types, strict=True) if kind == _NORMAL]


def _description(folder: Path) -> dict[str, Any]:
    found = read_json(folder / "tokenizer.json")
    model = None if found is None else found.get("model")
    if found is None or not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise CorruptTokenizerError(f"{folder / 'tokenizer.json'} has no vocabulary")
    return found


def _pair(merge: object) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, Sequence) or len(parts) != 2:
        raise CorruptTokenizerError(f"the tokenizer's merge {merge!r} is no pair")
    return str(parts[0]), str(parts[1])


def _scores(tokens: _Tokens) -> list[float]:
    """Return scores with which SentencePiece joins neighbours in the order of the merges.

    It joins those that make the token with the highest score. So all merges that make one
    token have to follow one another, and no way to make it may be missing.
    """
    scores = dict.fromkeys(tokens.ids, 0.0)
    ways: dict[str, set[tuple[str, str]]] = {}
    last = ""
    for pair in tokens.merges:
        made = "".join(pair)
        if made != last and made in ways:
            raise _refused(f"merges that make {made!r} at several ranks")
        scores[made] = scores[made] if made == last else -1.0 - len(ways)
        ways.setdefault(made, set()).add(pair)
        last = made
    known = set(tokens.normal())
    for text in known:
        cuts = {(text[:cut], text[cut:]) for cut in range(1, len(text))}
        possible = {cut for cut in cuts if known.issuperset(cut)}
        if not possible <= ways.get(text, set()):
            raise _refused(f"a token {text!r} that two tokens make, and no merge")
    return [scores.get(text, 0.0) for text in tokens.texts]


def _prepends_blank(description: Mapping[str, Any]) -> bool:
    """Tell whether texts begin with a blank that nobody wrote, as SentencePiece's do."""
    normalizer, cutter = description.get("normalizer"), description.get("pre_tokenizer")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    prepend = {"type": "Prepend", "prepend": _BLANK}
    if cutter is None:
        if normalizer in (replace, {"type": "Sequence", "normalizers": [replace]}):
            return False
        if normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}:
            return True
    if normalizer is None and isinstance(cutter, dict) and cutter.get("type") == "Metaspace":
        scheme = cutter.get("prepend_scheme", "always")
        if cutter.get("replacement") == _BLANK and not cutter.get("split", True):
            return bool(scheme != "never")
    raise _refused(f"normalizer {_short(normalizer)} with pre-tokenizer {_short(cutter)}")


def _rule(description: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the way words are cut."""
    normalizer, cutter = description.get("normalizer"), description.get("pre_tokenizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise _refused(f"normalizer {_short(normalizer)}")
    ignores = bool(description["model"].get("ignore_merges"))
    name = _RULES.get((_pattern(cutter), ignores))
    if name is None:
        raise _refused(f"pre-tokenizer {_short(cutter)}")
    return name


def _pattern(cutter: object) -> str:
    """Return the expression that cuts words, or a name for it; empty if that is unknown."""
    match cutter:
        case {"type": "ByteLevel", "add_prefix_space": False, **rest} if rest.get(
            "use_regex", True
        ):
            return "gpt-2"
        case {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, last],
        } if _pattern(last) == "gpt-2":
            return "digits, gpt-2"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": str(pattern)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
        case _:
            return ""


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _refused(what: str) -> UnsupportedTokenizerError:
    return UnsupportedTokenizerError(
        f"the tokenizer has {what}, which is not turned into a GGUF vocabulary here",
        hint="Write a SafeTensors folder, and convert it with llama.cpp's convert_hf_to_gguf.py.",
    )
