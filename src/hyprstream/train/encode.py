"""Records to samples of one model: through its chat template and its tokenizer.

Of chats, what the assistant says counts, its calls of tools included; of instructions and
completions, the answer. Of texts everything counts, and those that are too long are cut into
windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hyprstream.errors import InvalidRequestError
from hyprstream.models.chat import ChatTemplate, encode_chat
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.train.messages import Message, Tool
from hyprstream.train.records import Chat, Completion, Instruction, Lesson, Text
from hyprstream.train.sample import Sample

TooLong = Literal["refuse", "skip", "cut"]
"""What happens to a sample that is too long: an error, nothing is learnt of it, or its end goes."""

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
        template: How the model writes chats; None for a model that knows none. Instructions
            become chats where there is one, and Alpaca's own text where there is none.
        max_tokens: Longest sample, in tokens that have to be computed.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    max_tokens: int

    def samples(self, lesson: Lesson) -> list[Sample]:
        """Return the samples of one record: more than one for a long text.

        Samples of other records may be too long (`fitted`).

        Raises:
            InvalidRequestError: Nothing in it counts, or the model has no chat template.
            ChatTemplateError: The template refuses the chat.
        """
        match lesson:
            case Chat():
                return [self._chat(lesson)]
            case Instruction():
                return [self._instruction(lesson)]
            case Completion():
                return [self._completion(lesson.prompt, lesson.answer, lesson.weight)]
            case Text():
                return self._windows(lesson)

    def sample(self, lesson: Lesson) -> Sample:
        """Return the one sample of a record; errors as in `samples`.

        Raises:
            InvalidRequestError: It is a long text, of which there would be several.
        """
        found = self.samples(lesson)
        if len(found) > 1:
            raise InvalidRequestError(
                "an answer is too long for one sample", hint="Shorten it, or allow longer samples."
            )
        return found[0]

    def fitted(self, sample: Sample, too_long: TooLong) -> Sample | None:
        """Return a sample that is not too long; None if nothing is to be learnt of it.

        Raises:
            InvalidRequestError: It is too long, and is to be refused.
        """
        if sample.num_computed <= self.max_tokens:
            return sample
        if too_long == "refuse":
            raise InvalidRequestError(
                f"a sample has {sample.num_computed} tokens, more than {self.max_tokens}",
                hint="Shorten it, or raise the length of samples.",
            )
        kept = self.max_tokens + 1
        if too_long == "skip" or not any(sample.counts[1:kept]):
            return None
        return Sample(sample.token_ids[:kept], sample.counts[:kept], sample.weight)

    def _chat(self, chat: Chat) -> Sample:
        if self.template is None:
            raise InvalidRequestError(
                "the model has no chat template", hint="Use prompts and completions."
            )
        messages = chat.messages
        token_ids = self._encoded(messages, chat.tools, prompt=False)
        counts = [False] * len(token_ids)
        for i, message in enumerate(messages):
            if i < chat.begin or message.get("role") != "assistant":
                continue
            until = self._encoded(messages[: i + 1], chat.tools, prompt=False)
            if token_ids[: len(until)] != until:
                raise InvalidRequestError(
                    "the model's chat template changes what was said before",
                    hint="Give one record for each answer, with the chat up to it.",
                )
            before = self._encoded(messages[:i], chat.tools, prompt=True)
            begin = _num_common(before, until)
            counts[begin : len(until)] = [True] * (len(until) - begin)
        return Sample(tuple(token_ids), tuple(counts), chat.weight)

    def _encoded(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, prompt: bool
    ) -> list[int]:
        assert self.template is not None
        return encode_chat(
            self.tokenizer,
            self.template,
            messages,
            add_generation_prompt=prompt,
            tools=list(tools) or None,
        )

    def _instruction(self, lesson: Instruction) -> Sample:
        instruction, context = lesson.instruction, lesson.context
        if self.template is not None:
            asked = f"{instruction}\n\n{context}" if context else instruction
            roles = (("user", asked), ("assistant", lesson.answer))
            messages = tuple({"role": role, "content": text} for role, text in roles)
            return self._chat(Chat(messages=messages, weight=lesson.weight))
        prompt = _ALPACA.format(
            with_input=", paired with an input that provides further context" if context else "",
            instruction=instruction,
            input=f"### Input:\n{context}\n\n" if context else "",
        )
        return self._completion(prompt, lesson.answer, lesson.weight)

    def _completion(self, prompt: str, answer: str, weight: float) -> Sample:
        # Encoded in one piece, as the model has seen texts; where both part, the answer begins.
        token_ids = self._ended(prompt + answer)
        begin = _num_common(self.tokenizer.encode(prompt), token_ids)
        marks = (False,) * begin + (True,) * (len(token_ids) - begin)
        return Sample(tuple(token_ids), marks, weight)

    def _windows(self, lesson: Text) -> list[Sample]:
        token_ids = self._ended(lesson.text)
        # Each window begins with the last token of the one before: all are predicted once.
        starts = range(0, max(1, len(token_ids) - 1), self.max_tokens)
        windows = [tuple(token_ids[i : i + self.max_tokens + 1]) for i in starts]
        return [Sample(window, (True,) * len(window), lesson.weight) for window in windows]

    def _ended(self, text: str) -> list[int]:
        """Return the tokens of a text, and the one that says that it is over."""
        token_ids = self.tokenizer.encode(text)
        end = self.tokenizer.special_tokens.get("eos_token", "")
        ends = self.tokenizer.encode(end, add_special=False, parse_special=True)
        if len(ends) == 1 and ends[0] in self.tokenizer.eos_ids and token_ids[-1:] != ends:
            token_ids += ends
        return token_ids


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
