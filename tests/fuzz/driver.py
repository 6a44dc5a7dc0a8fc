"""One loop for every reader: bytes to a file, the file to the reader, all it accepts is read.

Runs with atheris (libFuzzer for Python). The process ends with an exit code other than 0 when
an input raises anything but the errors that a reader may raise, takes over 2 seconds, or takes
the process over 2 GB, most of which is torch. The input is then left in the folder.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # not installed
import torch

from hyprstream.errors import CorruptError, UnsupportedFormatError


def fuzz(read_all: Callable[[Path], None], sound: bytes, words: Sequence[str] = ()) -> None:
    """Fuzz a reader for the seconds and in the folder of the command line; does not return.

    Args:
        read_all: Opens a file and reads all of it.
        sound: A file that it accepts, to begin from.
        words: Text that chance would not find, for the fuzzer to put in.
    """
    program, seconds, folder = sys.argv
    torch.set_num_threads(1)
    corpus = Path(folder) / "corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "sound").write_bytes(sound)
    dictionary = Path(folder) / "words"
    dictionary.write_text(
        "".join(f'"{word.replace(chr(34), chr(92) + chr(34))}"\n' for word in words)
    )
    file = Path(folder) / "input"

    def try_one(data: bytes) -> None:
        file.unlink(missing_ok=True)  # not overwritten: the one before may still be mapped
        file.write_bytes(data)
        try:
            read_all(file)
        except (CorruptError, UnsupportedFormatError):
            return

    limits = [f"-max_total_time={seconds}", "-timeout=2", "-rss_limit_mb=2048", "-max_len=4096"]
    files = [f"-artifact_prefix={folder}/", f"-dict={dictionary}", str(corpus)]
    atheris.Setup([program, *limits, *files], try_one)
    atheris.Fuzz()
