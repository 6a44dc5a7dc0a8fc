"""Files of JSON lines to samples. Files are not trusted: lines, depth and samples are bounded.

A line is one of

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}
    {"instruction": ..., "input": ..., "output": ...}     Alpaca; the input may be left out
    {"prompt": ..., "completion": ...}
    {"text": ...}

Of chats, what the assistant says counts; of Alpaca, the output; of completions, the completion.
Of texts everything counts, and those that are too long are cut into windows. Other keys are
left alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hyprstream.errors import InvalidDatasetError, InvalidInputError, InvalidRequestError
from hyprstream.models.chat import ChatTemplate, encode_chat
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.train.sample import Sample

MAX_LINE_BYTES = 1 << 20
MAX_MESSAGES = 256

_ALPACA = (
    "Below is an instruction that describes a task{with_input}. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{input}"
    "### Response:\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleMaker:
    """Turns records into samples of one model.

    Attributes:
        tokenizer: Of the model.
        template: How the model writes chats; None for a model that knows none. Alpaca records
            become chats where there is one, and Alpaca's own text where there is none.
        max_tokens: Longest sample, in tokens that have to be computed.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    max_tokens: int

    def samples(self, record: Mapping[str, object]) -> list[Sample]:
        """Return the samples of one record: more than one for a long text.

        Raises:
            InvalidRequestError: It is of no known form, or too long.
            ChatTemplateError: The template refuses the chat.
        """
        if "messages" in record:
            return [self._checked(self._chat(record["messages"]))]
        if "instruction" in record:
            return [self._checked(self._alpaca(record))]
        if "prompt" in record:
            answer = self._completion(_text(record, "prompt"), _text(record, "completion"))
            return [self._checked(answer)]
        if "text" in record:
            return self._windows(_text(record, "text"))
        raise InvalidRequestError(
            "a record has neither messages, instruction, prompt nor text",
            hint="Write one of the forms that the reference page of training shows.",
        )

    def _chat(self, messages: object) -> Sample:
        if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
            raise InvalidRequestError(
                f"messages is no list of 1 to {MAX_MESSAGES}", hint="Split longer chats."
            )
        if self.template is None:
            raise InvalidRequestError(
                "the model has no chat template", hint="Use prompts and completions."
            )
        token_ids = self._encoded(messages, prompt=False)
        counts = [False] * len(token_ids)
        for i, message in enumerate(messages):
            if not (isinstance(message, Mapping) and message.get("role") == "assistant"):
                continue
            until = self._encoded(messages[: i + 1], prompt=False)
            if token_ids[: len(until)] != until:
                raise InvalidRequestError(
                    "the model's chat template changes what was said before",
                    hint="Give one record for each answer, with the chat up to it.",
                )
            begin = _num_common(self._encoded(messages[:i], prompt=True), until)
            counts[begin : len(until)] = [True] * (len(until) - begin)
        return Sample(tuple(token_ids), tuple(counts))

    def _encoded(self, messages: Sequence[object], *, prompt: bool) -> list[int]:
        assert self.template is not None
        return encode_chat(self.tokenizer, self.template, messages, add_generation_prompt=prompt)

    def _alpaca(self, record: Mapping[str, object]) -> Sample:
        instruction, output = _text(record, "instruction"), _text(record, "output")
        context = _text(record, "input") if record.get("input") else ""
        if self.template is not None:
            asked = f"{instruction}\n\n{context}" if context else instruction
            roles = (("user", asked), ("assistant", output))
            return self._chat([{"role": role, "content": text} for role, text in roles])
        prompt = _ALPACA.format(
            with_input=", paired with an input that provides further context" if context else "",
            instruction=instruction,
            input=f"### Input:\n{context}\n\n" if context else "",
        )
        return self._completion(prompt, output)

    def _completion(self, prompt: str, completion: str) -> Sample:
        # Encoded in one piece, as the model has seen texts; where both part, the answer begins.
        token_ids = self._ended(prompt + completion)
        begin = _num_common(self.tokenizer.encode(prompt), token_ids)
        return Sample.answer(token_ids[:begin], token_ids[begin:])

    def _windows(self, text: str) -> list[Sample]:
        token_ids = self._ended(text)
        # Each window begins with the last token of the one before: all are predicted once.
        starts = range(0, max(1, len(token_ids) - 1), self.max_tokens)
        return [Sample.text(token_ids[i : i + self.max_tokens + 1]) for i in starts]

    def _ended(self, text: str) -> list[int]:
        """Return the tokens of a text, and the one that says that it is over."""
        token_ids = self.tokenizer.encode(text)
        end = self.tokenizer.special_tokens.get("eos_token", "")
        ends = self.tokenizer.encode(end, add_special=False, parse_special=True)
        if len(ends) == 1 and ends[0] in self.tokenizer.eos_ids and token_ids[-1:] != ends:
            token_ids += ends
        return token_ids

    def _checked(self, sample: Sample) -> Sample:
        if sample.num_computed > self.max_tokens:
            raise InvalidRequestError(
                f"a sample has {sample.num_computed} tokens, more than {self.max_tokens}",
                hint="Shorten it, or raise the length of samples.",
            )
        return sample


def read_samples(file: Path, maker: SampleMaker, *, max_samples: int = 100_000) -> list[Sample]:
    """Read a file of JSON lines; empty lines are skipped.

    Raises:
        InvalidDatasetError: The file cannot be read, a line is no record, or there are no
            samples or too many of them; it names the line.
    """
    samples: list[Sample] = []
    try:
        for number, record in _records(file):
            try:
                samples += maker.samples(record)
            except InvalidInputError as error:
                raise InvalidDatasetError(file, str(error), line=number) from error
            if len(samples) > max_samples:
                raise InvalidDatasetError(file, f"more than {max_samples} samples", line=number)
    except OSError as error:
        raise InvalidDatasetError(file, f"it cannot be read: {error.strerror}") from error
    if not samples:
        raise InvalidDatasetError(file, "it holds no samples")
    return samples


def _records(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the number of each line, from 1, and what it says."""
    with file.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InvalidDatasetError(file, f"longer than {MAX_LINE_BYTES} bytes", line=number)
            if line.isspace():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                raise InvalidDatasetError(file, f"it is no JSON: {error}", line=number) from error
            if not isinstance(record, dict):
                raise InvalidDatasetError(file, "it is no JSON object", line=number)
            yield number, record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _text(record: Mapping[str, object], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise InvalidRequestError(
            f"{key} is {'missing' if value is None else 'no text'}", hint="Give a text."
        )
    return value


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
