"""Build a grammar with llguidance, first where it can do no harm.

A grammar is a small program from a stranger. llguidance counts its own work, but not all of
it: chains of references overflow the stack, which ends the process, and some numbers take
minutes. So a grammar is first built in a process of its own, with little stack, memory and
time: this file, run as a program. What survives there is built again by the caller, who has
more of each.

Imports nothing of this package, so that the process starts in a tenth of a second.
"""

import json
import resource
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

# Threads have 8 MiB on Linux; a grammar that needs a sixteenth of it is safe on any of them.
_STACK_BYTES = 512 * 1024
_MEMORY_BYTES = 2 * 1024**3  # of addresses, most of which an allocator only reserves
# A state takes up to 2 kB, so that one grammar can hold some 100 MB; the default is 5 times that.
_MAX_LEXER_STATES = 50_000
# What an ambiguous grammar may take for one token: 5 ms of everybody's time, measured.
_MAX_STEP_ITEMS = 20_000
_WALL_PER_CPU = 10  # a busy machine gives a process a tenth of a core


class _Vocabulary:
    """A vocabulary in the form in which `TokenizerWrapper` takes it."""

    bos_token_id = None

    def __init__(self, token_bytes: Sequence[bytes], special_ids: Collection[int]) -> None:
        # A token of its own says "the end": which of a model's tokens do so, the sampler knows.
        self.tokens = [*token_bytes, b""]
        self.eos_token_id = len(token_bytes)
        self.special_token_ids = sorted(special_ids)

    def __call__(self, text: bytes | str) -> list[int]:
        """Refuse: only grammars that force tokens need an encoder, and ours never do."""
        raise AssertionError(f"a grammar wants to encode {text!r}")


def open_vocabulary(token_bytes: Sequence[bytes], special_ids: Collection[int]) -> LLTokenizer:
    """Prepare a vocabulary; the token after its last one stands for the end of an answer."""
    return LLTokenizer(TokenizerWrapper(_Vocabulary(token_bytes, special_ids)))


def build(grammar: str, vocabulary: LLTokenizer) -> LLMatcher:
    """Build a grammar and compute what may come first; `problem` tells how it went."""
    limits = LLParserLimits(
        max_lexer_states=_MAX_LEXER_STATES, step_max_items=_MAX_STEP_ITEMS, verbose_errors=False
    )
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def problem(matcher: LLMatcher) -> str:
    """Return what is wrong with a grammar, in one line; empty if nothing is."""
    first, *_ = matcher.get_error().splitlines() or [""]
    return "no token can come next" if first == "NoExtensionBias" else first[:300]


def try_out(grammar: str, *, specials: Mapping[int, str], vocab_size: int, seconds: int) -> str:
    """Build a grammar in a process of its own and return its problem; empty if it has none.

    Args:
        grammar: In llguidance's own notation.
        specials: The tokens that it may name, and their names.
        vocab_size: Number of tokens.
        seconds: Processor time that it may take.
    """
    too_complex = f"it is too complex: it takes too much memory, depth, or over {seconds} seconds"
    try:
        child = subprocess.run(  # noqa: S603 - this interpreter, this file
            [sys.executable, "-P", __file__, str(seconds)],
            input=json.dumps([grammar, list(specials.items()), vocab_size]).encode(),
            capture_output=True,
            timeout=seconds * _WALL_PER_CPU,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return too_complex
    return child.stdout.decode() if child.returncode == 0 else too_complex


def _main(seconds: int) -> None:
    grammar, specials, vocab_size = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    threading.stack_size(_STACK_BYTES)
    found: list[str] = []

    def work() -> None:
        # Single bytes can spell everything; what the model's own tokens cannot, shows later.
        tokens = [b""] * vocab_size + [bytes([byte]) for byte in range(256)]
        for token_id, name in specials:
            tokens[token_id] = name.encode()
        vocabulary = open_vocabulary(tokens, [token_id for token_id, _ in specials])
        found.append(problem(build(grammar, vocabulary)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    sys.stdout.buffer.write(found[0].encode())


if __name__ == "__main__":
    _main(int(sys.argv[1]))
