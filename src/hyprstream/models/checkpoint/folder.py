"""Which file holds a model's weights, and which reader it gets.

A file is judged by its content; in a folder, the usual names say which file it is.
"""

from pathlib import Path

from hyprstream.errors import InvalidInputError, ModelNotFoundError, UnsupportedFormatError
from hyprstream.models.checkpoint.gguf import GgufFile
from hyprstream.models.checkpoint.magic import GGUF, PICKLE_HINT, identify
from hyprstream.models.checkpoint.mapping import MappedFile, is_folder
from hyprstream.models.checkpoint.safetensors import INDEX_NAME, SINGLE_NAME, open_safetensors
from hyprstream.models.checkpoint.tensors import Checkpoint

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model's weights.

    Args:
        path: A GGUF or safetensors file, an index of shards, or a folder with one of them.

    Raises:
        ModelNotFoundError: There is nothing at `path`, or no weights in it.
        InvalidInputError: The folder holds several files, any of which could be meant.
        CorruptWeightsError: A file breaks the rules of its format.
        UnsupportedFormatError: A file is of another format, or holds something that has no
            implementation.

    Example:
        >>> with open_checkpoint(Path("model.gguf")) as checkpoint:  # doctest: +SKIP
        ...     embedding = checkpoint.tensor("token_embd.weight")
    """
    file = find_weights(path) if is_folder(path) else path
    if identify(MappedFile.open(file)) == GGUF:
        return GgufFile.open(file)
    return open_safetensors(file)


def find_weights(folder: Path) -> Path:
    """Choose the file of a folder that holds the weights.

    That is `model.safetensors`, or the index of its shards, or the only safetensors file, or
    the only GGUF file: the first of these that there is.

    Raises:
        ModelNotFoundError: There are no weights, or the folder cannot be read.
        InvalidInputError: There are several files, any of which could be meant.
        UnsupportedFormatError: The only weights are pickled.
    """
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise ModelNotFoundError(f"{folder} cannot be read: {error.strerror}") from error
    for name in (SINGLE_NAME, INDEX_NAME):
        if folder / name in files:
            return folder / name
    for pattern in ("*.safetensors", "*.gguf"):
        matches = [file for file in files if file.match(pattern)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(file.name for file in matches[:5])
            raise InvalidInputError(
                f"{folder} holds {len(matches)} files of weights: {names}",
                hint=f"Name one of them; shards of one model need their {INDEX_NAME}.",
            )
    pickles = [file.name for file in files if any(file.match(pattern) for pattern in _PICKLES)]
    if pickles:
        raise UnsupportedFormatError(
            f"{folder} holds pickled weights only: {', '.join(pickles[:5])}", hint=PICKLE_HINT
        )
    raise ModelNotFoundError(
        f"{folder} holds no weights: looked for {SINGLE_NAME}, {INDEX_NAME}, one *.safetensors "
        "and one *.gguf",
        hint="Name the folder of a model, or the file itself.",
    )
