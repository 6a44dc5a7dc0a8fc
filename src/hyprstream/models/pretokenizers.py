"""How BPE vocabularies of GGUF files cut text into words before merging.

A GGUF names its rule in `tokenizer.ggml.pre`. A rule is a list of patterns; each cuts the
pieces that the one before it left, and both what matches and what lies between matches go
on as pieces. Guessing a rule gives plausible ids that the model was not trained on, so an
unknown name is refused.

The patterns are those of the models' own tokenizer.json files, in the forms that llama.cpp
uses for them where the two mean the same.
"""

from dataclasses import dataclass

import tokenizers
from tokenizers import pre_tokenizers

from hyprstream.errors import UnsupportedTokenizerError


@dataclass(frozen=True, slots=True, kw_only=True)
class WordRule:
    """One way to cut text into words.

    Attributes:
        patterns: Oniguruma patterns, applied one after the other.
        ignore_merges: A word that is a token is taken whole, whatever the merges say.
        add_bos: Whether prompts start with the BOS token if the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_THREE_DIGITS = "[0-9][0-9][0-9]"


def _cl100k(*, word: str = r"\p{L}+", digits: str) -> str:
    return (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{word}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _o200k(*, suffix: str, digits: str) -> str:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# Cased letters as the DeepSeek LLM tokenizer lists them; no Unicode property is the same set.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

_RULES = {
    "default": WordRule(
        patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", _THREE_DIGITS),
    ),
    "gpt-2": WordRule(patterns=(_GPT2,)),
    "smollm": WordRule(patterns=(r"\p{N}", _GPT2)),
    "falcon": WordRule(patterns=(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, _THREE_DIGITS)),
    "llama-bpe": WordRule(
        patterns=(_cl100k(digits=r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True
    ),
    "dbrx": WordRule(patterns=(_cl100k(digits=r"\p{N}{1,3}"),)),
    "qwen2": WordRule(patterns=(_cl100k(digits=r"\p{N}"),)),
    "tekken": WordRule(
        patterns=(_o200k(suffix="", digits=r"\p{N}"),), ignore_merges=True, add_bos=True
    ),
    "gpt-4o": WordRule(patterns=(_o200k(suffix=f"{_CONTRACTION}?", digits=r"\p{N}{1,3}"),)),
    "deepseek-llm": WordRule(
        patterns=(
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+\z",
            _CJK_AND_HANGUL,
            r"\p{N}+",
        ),
    ),
    "deepseek-coder": WordRule(
        patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_HANGUL, r"\p{N}"),
    ),
    "deepseek-v3": WordRule(
        patterns=(
            r"\p{N}{1,3}",
            _CJK_AND_KANA,
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
}

# Names of models whose tokenizers use another's rule.
_SAME_AS = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), "smollm"),
    **dict.fromkeys(("minerva-7b",), "smollm"),
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "mellum"), "gpt-2"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), "qwen2"),
    **dict.fromkeys(("smaug-bpe", "glm4", "chatglm-bpe"), "dbrx"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
    "hunyuan-dense": "deepseek-v3",
}


def word_rule(name: str) -> WordRule:
    """Return the rule that `tokenizer.ggml.pre` names.

    Raises:
        UnsupportedTokenizerError: No rule has that name.
    """
    rule = _RULES.get(_SAME_AS.get(name, name))
    if rule is None:
        known = ", ".join(sorted({*_RULES, *_SAME_AS}))
        raise UnsupportedTokenizerError(
            f"pre-tokenizer {name!r} is not supported", hint=f"Supported: {known}."
        )
    return rule


def byte_level_splitter(rule: WordRule) -> pre_tokenizers.PreTokenizer:
    """Build the cutter of `rule`; words come out in GPT-2's alphabet for bytes."""
    splits: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in rule.patterns
    ]
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, bytes_only])
