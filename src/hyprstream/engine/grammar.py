r"""Answers that follow a grammar: which tokens may come next.

The work is llguidance's: it parses what was generated, byte by byte, and walks the tokens
of the vocabulary that the grammar admits. Here a grammar is checked, built and kept, and a
`GrammarConstraint` is what `RowSampler` asks before each token.

 - Grammars never force tokens: of all ways to spell a text, the model picks its own.
 - Control and end tokens are no text. A Lark grammar may name them, as `<|im_end|>`.
 - Between the parts of JSON up to 40 blanks may stand, no more: small models else go on
   with blanks forever. JSON schemas are read as llguidance does, which refuses the keywords
   that it does not enforce; properties come in the order in which the schema has them. It
   takes numbers for doubles: values beyond 2^53 are refused, bounds are rounded.
 - Regular expressions are those of Rust's regex crate, matched as a whole, `\d` is 0 to 9.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Bool
from llguidance import LLMatcher, regex_to_lark
from torch import Tensor

from hyprstream.engine.grammar_guard import build, open_vocabulary, problem, try_out
from hyprstream.engine.request import Grammar
from hyprstream.errors import InvalidRequestError

_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
_ANY_OBJECT = '{"type": "object"}'
_VALUES = frozenset({"const", "enum"})  # keywords of schemas whose values are written as they are
_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions"})  # name to schema
_LARGEST_EXACT = 1 << 53
_BLANKS = r"[\x20\x0A\x0D\x09]{1,40}"


class _BuiltGrammar:
    """A grammar at the start of every answer; unlike a matcher, it can be held weakly."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher


class GrammarConstraint:
    """What one answer may go on with: a grammar, and how far the answer got in it."""

    def __init__(self, built: _BuiltGrammar, vocab_size: int) -> None:
        self._built = built  # stays with the compiler while an answer follows it
        self._matcher = built.matcher.deep_copy()
        self._vocab_size = vocab_size

    @property
    def can_end(self) -> bool:
        """Tell whether the answer, as it stands, is all that the grammar wants."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Tell whether nothing more may follow."""
        return self._matcher.is_stopped()

    def forbidden(self) -> Bool[Tensor, " V"]:
        """Mark the tokens that may not come next.

        Raises:
            InvalidRequestError: No token may, or to find out takes too much work.
        """
        mask = self._matcher.compute_bitmask()
        self._check()
        bits = np.unpackbits(
            ~np.frombuffer(mask, np.uint8), bitorder="little", count=self._vocab_size
        )
        return torch.from_numpy(bits.view(np.bool_))

    def accept(self, token_id: int) -> None:
        """Go on by one token.

        Raises:
            InvalidRequestError: To follow the grammar takes too much work.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequestError(
                f"the grammar cannot be followed: {problem(self._matcher)}",
                hint="Make the grammar simpler, or let it admit what this model can write.",
            )


class GrammarCompiler:
    """Builds grammars for one vocabulary and keeps the latest, and all that are in use.

    May be used from several threads without a lock: each touch of the cache is one atomic
    operation, and two threads that want the same new grammar both build it. Building takes
    a tenth of a second and more, so that it is no work for the engine thread; asked for a
    second time, a grammar costs next to nothing.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        *,
        special_ids: Collection[int],
        max_cached: int = 64,
        compile_seconds: int = 2,
    ) -> None:
        """Prepare a vocabulary; takes half a second for one of 150,000 tokens.

        Args:
            token_bytes: What each token spells, one for each logit; empty for none.
            special_ids: Tokens that are no text: control tokens and end tokens.
            max_cached: How many grammars to keep.
            compile_seconds: Processor time that building one may take.
        """
        self._vocab_size = len(token_bytes)
        # A tokenizer may name end tokens that its model cannot produce.
        held = [i for i in special_ids if i < len(token_bytes)]
        self._specials = {i: token_bytes[i].decode("utf-8", "replace") for i in held}
        self._vocabulary = open_vocabulary(token_bytes, held)
        self._max_cached = max_cached
        self._compile_seconds = compile_seconds
        self._latest: OrderedDict[Grammar, _BuiltGrammar] = OrderedDict()
        self._in_use: WeakValueDictionary[Grammar, _BuiltGrammar] = WeakValueDictionary()

    def compile(self, grammar: Grammar) -> GrammarConstraint:
        """Return a constraint for one answer, at its start.

        Raises:
            InvalidRequestError: The grammar is not well-formed, uses what is not supported,
                takes too much time or memory, or admits nothing that the model can write.
        """
        # Taken out and put in again: the oldest entry is then the one not used for longest.
        built = self._latest.pop(grammar, None) or self._in_use.get(grammar)
        if built is None:
            built = self._in_use[grammar] = _BuiltGrammar(self._build(grammar))
        self._latest[grammar] = built
        while len(self._latest) > self._max_cached:
            self._latest.popitem(last=False)
        return GrammarConstraint(built, self._vocab_size)

    def _build(self, grammar: Grammar) -> LLMatcher:
        notation = json.dumps({"grammars": [{"lark_grammar": _lark(grammar) + _NO_FORCING}]})
        found = try_out(
            notation,
            specials=self._specials,
            vocab_size=self._vocab_size,
            seconds=self._compile_seconds,
        )
        if not found:
            matcher = build(notation, self._vocabulary)
            found = problem(matcher)
            if not found:
                return matcher
        raise _refused(grammar, found.rpartition("failed to compile JSON schema: ")[2])


def tool_call_grammar(
    tools: Mapping[str, Mapping[str, object]],
    *,
    before: str = "<tool_call>\n",
    after: str = "\n</tool_call>",
    parallel: bool = False,
) -> Grammar:
    """Make the grammar of an answer that calls tools, written as Hermes and Qwen do.

    Args:
        tools: Name of each tool -> JSON schema of its arguments.
        before: What the model writes before the JSON of a call.
        after: What it writes after it.
        parallel: Admit several calls, one per line.

    Raises:
        InvalidRequestError: There are no tools, a schema is no JSON, or all are too long.
    """
    if not tools:
        raise InvalidRequestError("there are no tools", hint="Name at least one to call.")
    rules = ['start: call ("\\n" call)*' if parallel else "start: call"]
    rules.append("call: " + " | ".join(f"tool{i}" for i in range(len(tools))))
    for i, (name, schema) in enumerate(tools.items()):
        head = json.dumps(f'{before}{{"name": {json.dumps(name)}, "arguments": ')
        tail = json.dumps("}" + after)
        rules.append(f"tool{i}: {head} arguments{i} {tail}")
        try:
            rules.append(f"arguments{i}: %json {_schema(json.dumps(schema))}")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"the schema of the tool {name!r} is not JSON: {error}",
                hint="Describe its arguments by a JSON schema.",
            ) from error
    return Grammar(kind="lark", text="\n".join(rules))


def _lark(grammar: Grammar) -> str:
    """Write a grammar of any kind in llguidance's variant of Lark."""
    match grammar.kind:
        case "lark":
            return grammar.text
        case "regex":
            return f"start: /{regex_to_lark(grammar.text)}/"
        case "json_object":
            return f"start: %json {_schema(_ANY_OBJECT)}"
        case "json_schema":
            try:
                return f"start: %json {_schema(grammar.text)}"
            except (ValueError, RecursionError) as error:
                raise _refused(grammar, f"it is not JSON: {error}") from error


def _schema(text: str) -> str:
    """Write a schema anew, so that it is JSON for sure, with our default for blanks."""
    schema = json.loads(text)
    _check_values(schema)
    if isinstance(schema, dict):
        options = schema.get("x-guidance", {})
        if isinstance(options, dict):
            schema["x-guidance"] = {"whitespace_pattern": _BLANKS} | options
    return json.dumps(schema, allow_nan=False)


def _check_values(schema: object) -> None:
    """Refuse what would be written as another number: llguidance takes numbers for doubles."""
    left: list[tuple[object, str]] = [(schema, "")]  # parts, and the keywords that they stand under
    while left:
        part, under = left.pop()
        if isinstance(part, dict):
            for key, each in part.items():
                # What is a name here is no keyword, and all within a value is part of it.
                left.append((each, under if under in _VALUES else "" if under in _NAMES else key))
        elif isinstance(part, list):
            left += [(each, under) for each in part]
        elif under in _VALUES and isinstance(part, int) and abs(part) > _LARGEST_EXACT:
            raise InvalidRequestError(
                f"a schema names the value {part}, and integers beyond {_LARGEST_EXACT} are not "
                "told from their neighbours",
                hint="Name it as a string, or give a range instead.",
            )


def _refused(grammar: Grammar, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the {grammar.kind} of {len(grammar.text)} characters cannot be used: {why}",
        hint="Correct it, make it simpler, or use another kind of grammar.",
    )
