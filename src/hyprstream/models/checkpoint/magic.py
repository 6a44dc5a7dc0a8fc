"""What a file really is, told by its first bytes and not by its name.

Downloads go wrong in a few well-known ways: the file is a web page, a git-LFS pointer or a
pickle. Saying so spares people the search for damage that is none.
"""

import re

from hyprstream.errors import UnsupportedFormatError
from hyprstream.models.checkpoint.mapping import MappedFile

GGUF = "a GGUF file"
SAFETENSORS = "a safetensors file"
JSON = "a JSON document"
UNKNOWN = "of an unknown format"

MAX_HEADER_BYTES = 100_000_000  # of a safetensors header, as in its reference implementation

PICKLE_HINT = (
    "Pickled weights can run code when read, so they never are: fetch the model's safetensors "
    "files, or convert it on a machine you can lose with transformers' save_pretrained."
)
_OPEN_HINT = "Name that file itself: its format is told by its content."
_FETCH_HINT = "Fetch the file again and look at what the server answers."

# what the first bytes look like, what that is, what to do about it
_LOOKS = (
    (re.compile(rb"GGUF"), GGUF, _OPEN_HINT),
    (
        re.compile(rb"version https://git-lfs"),
        "a git-LFS pointer that stands for a file kept elsewhere",
        "Run `git lfs pull` in the folder it came from.",
    ),
    (
        re.compile(rb"PK\x03\x04"),
        "a zip archive, as PyTorch's .bin and .pt files are",
        PICKLE_HINT,
    ),
    (re.compile(rb"\x80[\x02-\x05][^\0]"), "a Python pickle", PICKLE_HINT),
    (re.compile(rb"\s*<(!doctype|html|head|body)", re.IGNORECASE), "a web page", _FETCH_HINT),
    (re.compile(rb"\s*<\?xml", re.IGNORECASE), "an XML document", _FETCH_HINT),
    (
        re.compile(rb"ggml|lmgg|ggmf|fmgg|ggjt|tjgg"),
        "in a ggml format from before GGUF",
        "Fetch a GGUF conversion of the model.",
    ),
    (re.compile(rb"\x89HDF"), "an HDF5 file", "Fetch the model's safetensors files."),
    (re.compile(rb"\x1f\x8b\x08"), "a gzip archive", "Unpack it first."),
    (re.compile(rb"\s*\{"), JSON, _FETCH_HINT),
    (re.compile(rb"\0{64}"), "full of zeros, as an unfinished download is", _FETCH_HINT),
)
_HEAD_BYTES = 512


def identify(mapped: MappedFile) -> str:
    """Say what a file is, in words that fit after "it is".

    Returns:
        `GGUF`, `SAFETENSORS`, `JSON`, the name of something else, or `UNKNOWN`.
    """
    return _look(mapped)[0]


def expect(mapped: MappedFile, what: str) -> None:
    """Refuse a file that is clearly something other than `what`; let the unknown pass.

    Raises:
        UnsupportedFormatError: It is something else, which the message names.
    """
    found, hint = _look(mapped)
    if found not in (what, UNKNOWN):
        raise UnsupportedFormatError(f"{mapped.file} is {found}, not {what}", hint=hint)


def _look(mapped: MappedFile) -> tuple[str, str]:
    head = mapped.data[:_HEAD_BYTES]
    # First, because a header's length may begin with the bytes of any other signature.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return SAFETENSORS, _OPEN_HINT
    for pattern, what, hint in _LOOKS:
        if pattern.match(head):
            return what, hint
    return UNKNOWN, ""
