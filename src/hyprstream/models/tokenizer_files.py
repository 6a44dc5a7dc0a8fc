"""The tokenizer files of a Hugging Face model folder, read into a `Vocabulary`.

`tokenizer.json` says how to encode and decode; the files beside it name special tokens,
end tokens and chat templates. Nothing in them is code that runs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from hyprstream.errors import (
    CorruptTokenizerError,
    ModelNotFoundError,
    UnsupportedTokenizerError,
)
from hyprstream.models.detokenize import Spelling
from hyprstream.models.vocabulary import Vocabulary, is_library_failure

_MAX_FILE_BYTES = 200_000_000
ROLES = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
    "mask_token",
)
"""What transformers calls tokens that have a role."""
_BLANK = "\u2581"  # SentencePiece's letter for a blank


def read_tokenizer_folder(folder: Path) -> Vocabulary:
    """Read the tokenizer of the model in `folder`.

    Raises:
        ModelNotFoundError: The folder has no tokenizer.json.
        CorruptTokenizerError: A file is damaged or larger than any tokenizer.
        UnsupportedTokenizerError: The tokenizer decodes in a way that is not implemented.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelNotFoundError(
            f"{folder} has no tokenizer.json",
            hint="Name a folder with a tokenizer.json, or a GGUF file, which carries its own.",
        )
    config = _read_object(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(folder, config)
    backend = _read_backend(file, special_tokens)
    named = {role: backend.token_to_id(text) for role, text in special_tokens.items()}
    declared = [
        _read_object(folder / name).get("eos_token_id")
        for name in ("generation_config.json", "config.json")
    ]
    ends = [named.get("eos_token"), *(i for ids in declared for i in _as_list(ids))]
    return Vocabulary(
        kind=type(backend.model).__name__,
        backend=backend,
        spelling=_read_spelling(backend, file),
        bos_id=named.get("bos_token"),
        eos_ids=frozenset(i for i in ends if type(i) is int and i >= 0),
        special_tokens=special_tokens,
        chat_templates=_chat_templates(folder, config),
    )


def _read_backend(file: Path, special_tokens: Mapping[str, str]) -> tokenizers.Tokenizer:
    text = _read_text(file)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        if not is_library_failure(error):
            raise
        raise CorruptTokenizerError(
            f"{file} is no tokenizer: {error}", hint="Fetch the file again."
        ) from error
    # Both would silently change prompts; some published files carry them.
    backend.no_truncation()
    backend.no_padding()
    # A token that has a role is a control token, even if the file forgot to say so.
    added = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    roles = dict.fromkeys(special_tokens.values())
    backend.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text in roles
            if text not in added and backend.token_to_id(text) is not None
        ]
    )
    return backend


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    roles = {**_read_object(folder / "special_tokens_map.json"), **config}
    found = {}
    for role in ROLES:
        value = roles.get(role)
        if isinstance(value, dict):  # an AddedToken with its flags
            value = value.get("content")
        if isinstance(value, str) and value:
            found[role] = value
    return found


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Collect templates; files of their own win over entries, as in transformers."""
    found = {}
    for entry in (
        config.get("chat_template"),
        _read_object(folder / "chat_template.json").get("chat_template"),
    ):
        if isinstance(entry, str):
            found["default"] = entry
        for named in _as_list(entry):
            if isinstance(named, dict):
                name, source = named.get("name"), named.get("template")
                if isinstance(name, str) and isinstance(source, str):
                    found[name] = source
    extra = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {file.stem: file for file in extra} | {"default": folder / "chat_template.jinja"}
    return found | {name: _read_text(file) for name, file in files.items() if file.is_file()}


def _read_spelling(backend: tokenizers.Tokenizer, file: Path) -> Spelling:
    decoder = backend.decoder
    if decoder is None:
        return Spelling(separator=" ")
    spec = json.loads(decoder.__getstate__())
    steps = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    fields: dict[str, Any] = {"replacements": ()}
    for step in steps:
        read = _spelling_of(step)
        if read is None:
            raise UnsupportedTokenizerError(
                f"{file} decodes with {json.dumps(step)}, which is not supported",
                hint="Supported: ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip of "
                "the first blank, and WordPiece.",
            )
        replacements = (*fields["replacements"], *read.pop("replacements", ()))
        fields |= {**read, "replacements": replacements}
    return Spelling(**fields)


def _spelling_of(step: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: PLR0911  a table
    """Say what one decoder step means for a `Spelling`; None if it cannot be said."""
    match step:
        case {"type": "ByteLevel"}:
            return {"byte_letters": True}
        case {"type": "ByteFallback"}:
            return {"byte_tokens": True}
        case {"type": "Fuse"}:
            return {}
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
            return {"strip_first_blank": True}
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return {"replacements": ((old, new),)}
        case {"type": "Metaspace", "replacement": old}:
            strips = step.get("prepend_scheme") != "never"
            return {"replacements": ((old, " "),), "strip_first_blank": strips}
        case {"type": "WordPiece", "prefix": prefix, "cleanup": tidy}:
            return {"separator": " ", "continuation": prefix, "tidy": tidy}
        case _:
            return None


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise CorruptTokenizerError(
            f"{file} is not JSON: {error}", hint="Fetch the file again."
        ) from error
    if not isinstance(value, dict):
        raise CorruptTokenizerError(f"{file} holds no JSON object", hint="Fetch the file again.")
    return value


def _read_text(file: Path) -> str:
    size_bytes = file.stat().st_size
    if size_bytes > _MAX_FILE_BYTES:
        raise CorruptTokenizerError(
            f"{file} has {size_bytes} bytes, more than any tokenizer file ({_MAX_FILE_BYTES})",
            hint="Fetch the file again.",
        )
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptTokenizerError(
            f"{file} cannot be read: {error}", hint="Fetch the file again."
        ) from error
