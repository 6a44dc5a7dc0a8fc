"""Which files of a repository a model is made of. Decides from names; touches nothing.

A repository may hold one model many times over: whole and quantised, for several programs.
Only what the loader reads is chosen, and never a pickle unless somebody names it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from hyprstream.catalog.card import model_entries
from hyprstream.errors import InvalidReferenceError, ModelNotFoundError, UnsupportedFormatError

DEFAULT_QUANT = "Q4_K_M"  # what llama.cpp and Ollama take where none is named

_CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_BESIDE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens"
    r"|chat_template|vocab|modules|sentence_bert_config|config_sentence_transformers)\.json"
    r"|(vocab|merges)\.txt|chat_template\.jinja|additional_chat_templates/[^/]+\.jinja"
    r"|\d+_\w+/(config\.json|model\.safetensors)"  # the last layers of an embedder
    r"|(licen[cs]e|notice|copying)(\.(md|txt))?",
    re.IGNORECASE,
)
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))"
    r"(?=$|[-.])",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})$")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # parts and by-products in GGUF
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is to be fetched.

    Attributes:
        names: Names in the repository, sorted.
        entry: Which of them a loader opens; "" for all as a folder.
    """

    names: tuple[str, ...]
    entry: str


def choose(
    repository: str, names: Sequence[str], *, tag: str | None, patterns: Sequence[str] = ()
) -> Choice:
    """Choose the files of a model.

    Args:
        repository: Its name, for messages.
        names: All its files, with `/`.
        tag: A quantisation, or the name of a GGUF file; in capitals or not. None means the
            model as a folder of SafeTensors, or else the only GGUF file, or else Q4_K_M.
        patterns: Chooses by shell patterns instead, such as `*.json`.

    Raises:
        InvalidReferenceError: Several files could be meant, and a tag says which.
        ModelNotFoundError: There is no model, or none of that tag.
        UnsupportedFormatError: There is one, in a form that is not read here.
    """
    if patterns:
        return _by_pattern(repository, names, patterns)
    if tag is None and (folder := _folder(names)):
        return Choice(names=tuple(sorted(folder)), entry="")
    file = _gguf(repository, names, tag)
    return Choice(names=(file,), entry=file)


def quant_of(name: str) -> str:
    """Name the quantisation that a GGUF file's name tells, in capitals; "" if it tells none.

    Example:
        >>> quant_of("gguf/Qwen3-0.6B-q4_k_m.gguf")
        'Q4_K_M'
    """
    found = _QUANT.findall(_stem(name))
    return found[-1].upper() if found else ""


def _by_pattern(repository: str, names: Sequence[str], patterns: Sequence[str]) -> Choice:
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    unused = [p for p in patterns if not any(fnmatchcase(name, p) for name in chosen)]
    if unused:
        raise ModelNotFoundError(
            f"no file of {repository} fits {unused[0]!r}", hint=f"It has: {_listed(names)}."
        )
    entries = model_entries(chosen)
    if "" in entries:
        return Choice(names=tuple(sorted(chosen)), entry="")
    if len(entries) != 1 or not entries[0].endswith(".gguf"):
        raise InvalidReferenceError(
            f"the chosen files of {repository} are not one model: {_listed(chosen)}",
            hint="Choose one GGUF file, or config.json and SafeTensors files of the top folder.",
        )
    return Choice(names=tuple(sorted(chosen)), entry=entries[0])


def _folder(names: Sequence[str]) -> list[str]:
    """List the files of a model in SafeTensors; empty if there is none in the top folder."""
    if _CONFIG not in names:
        return []
    if _SINGLE in names:
        weights = [_SINGLE]
    elif _INDEX in names:
        shards = [name for name in names if _SHARD.fullmatch(name)] or _top(names, ".safetensors")
        weights = [_INDEX, *shards] if shards else []
    else:
        weights = [n for n in _top(names, ".safetensors") if not n.startswith("adapter_")]
    beside = [name for name in names if _BESIDE.fullmatch(name)]
    return [*weights, *beside] if weights else []


def _top(names: Iterable[str], suffix: str) -> list[str]:
    return [name for name in names if "/" not in name and name.endswith(suffix)]


def _gguf(repository: str, names: Sequence[str], tag: str | None) -> str:
    files = [n for n in names if n.lower().endswith(".gguf") and not _NO_MODEL.search(n)]
    if not files:
        raise _no_model(repository, names, tag)
    if all(map(_is_part, files)) or (tag is None and len(files) == 1):
        found = files
    else:
        found = _tagged(files, tag or DEFAULT_QUANT)
    if not found:
        raise _none_of(repository, files, tag)
    whole = [name for name in found if not _is_part(name)]
    if not whole:
        raise UnsupportedFormatError(
            f"{found[0]} of {repository} is one part of a split GGUF file, which is not read",
            hint="Join the parts with `llama-gguf-split --merge` and name the file, "
            f"or choose another one: {_offered(files)}.",
        )
    if len(whole) > 1:
        raise InvalidReferenceError(
            f"{len(whole)} files of {repository} could be meant: {_listed(whole)}",
            hint=f"Write the file's name as the tag: {repository}:{PurePosixPath(whole[0]).name}.",
        )
    return whole[0]


def _tagged(files: Sequence[str], tag: str) -> list[str]:
    """Find the files that a tag means: by name, by quantisation, by the end of the name."""
    wanted = tag.casefold()
    by_name = [n for n in files if PurePosixPath(n).name.casefold() in (wanted, f"{wanted}.gguf")]
    by_quant = [n for n in files if quant_of(n).casefold() == wanted]
    ends = (f"-{wanted}", f".{wanted}")
    return by_name or by_quant or [n for n in files if _whole_stem(n).casefold().endswith(ends)]


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _is_part(name: str) -> bool:
    return _SPLIT.search(_stem(name)) is not None


def _whole_stem(name: str) -> str:
    return _SPLIT.sub("", _stem(name))


def _none_of(repository: str, files: Sequence[str], tag: str | None) -> Exception:
    offered = _offered(files)
    if tag is None:
        return InvalidReferenceError(
            f"{repository} holds {len(files)} GGUF files and none of them is {DEFAULT_QUANT}",
            hint=f"Choose one with a tag: {offered}.",
        )
    return ModelNotFoundError(f"{repository} has no GGUF file {tag!r}", hint=f"It has: {offered}.")


def _no_model(repository: str, names: Sequence[str], tag: str | None) -> Exception:
    if tag is not None and _folder(names):
        return ModelNotFoundError(
            f"{repository} has no GGUF files, so that {tag!r} means none",
            hint=f"Write {repository} without a tag; --quantize int4 makes it small.",
        )
    if "adapter_config.json" in names:
        return UnsupportedFormatError(
            f"{repository} is an adapter and no model",
            hint="Fetch the model that it was made for; `hyprstream lora import` takes adapters.",
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return UnsupportedFormatError(
            f"{repository} holds pickled weights only: {_listed(pickles)}",
            hint="Reading a pickle runs code; look for a repository with SafeTensors or GGUF.",
        )
    return ModelNotFoundError(
        f"{repository} holds no model: looked for *.gguf and for config.json with *.safetensors",
        hint=f"It holds: {_listed(names)}." if names else "It is empty.",
    )


def _offered(files: Iterable[str]) -> str:
    """List what can be chosen, without parts of split files."""
    whole = [name for name in files if not _is_part(name)]
    return _listed(sorted({quant_of(name) or PurePosixPath(name).name for name in whole}))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "nothing"
