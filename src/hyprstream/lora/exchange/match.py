"""Matches names with a stranger's regular expressions; run as a program by `guard.py`.

Python's engine can take exponential time on a pattern of a few letters. Imports nothing of
this package.
"""

import json
import re
import resource
import sys
from pathlib import Path


def first_matches(patterns: list[str], names: list[str]) -> list[int | None]:
    """Return for each name which pattern matches it first, or None."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return [
        next((i for i, pattern in enumerate(compiled) if pattern.match(name)), None)
        for name in names
    ]


def _main(seconds: int, memory_bytes: int, output_bytes: int, output: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    patterns, names = json.load(sys.stdin)
    output.write_text(json.dumps(first_matches(patterns, names)), "utf-8")


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[5]))
