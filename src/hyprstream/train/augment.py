"""More prompts for the same answers: pure functions of a record, or a sample, and a generator.

What is asked changes; the answer, and which tokens count, never do. Held-out records are left
alone. Whether this helps depends on the data; docs/reference/training.md says what was
measured.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch

from hyprstream.errors import InvalidSettingsError
from hyprstream.train.records import Chat, Completion, Instruction, Lesson
from hyprstream.train.sample import Sample

Augmentation = Callable[[Lesson, torch.Generator], Lesson]

_FRAMES = (
    "Please answer the following.\n{}",
    "Task: {}",
    "Here is a request:\n{}",
    "Read this carefully, then respond.\n\n{}",
    "Q: {}",
)
_NOISE_SHARE = 0.15  # of the words of a prompt
_CONTEXT_CHARS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """How often copies of a record are changed, and in which ways.

    Each chance is that of one copy to be changed in this way, 0 to 1; several may apply.
    """

    copies: int = 0
    """Changed copies of each record, beside the record itself; 0: none."""
    rephrase: float = 0.5
    """Chance that the prompt is put in other words around it."""
    casing: float = 0.25
    """Chance that some words are written in other letters."""
    shuffling: float = 0.0
    """Chance that some neighbouring words change places."""
    context: float = 0.0
    """Chance that an unrelated text stands before the prompt."""
    token_dropout: float = 0.0
    """Share of the tokens of prompts that are left out, others each time a sample comes."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        if not 0 <= self.copies <= 100:
            raise InvalidSettingsError(f"copies is {self.copies}", hint="Make it 0 to 100.")
        for name in ("rephrase", "casing", "shuffling", "context"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint="Make it 0 to 1."
                )
        if not 0 <= self.token_dropout <= 0.9:
            raise InvalidSettingsError(
                f"token_dropout is {self.token_dropout}", hint="Make it 0 to 0.9."
            )


class Copier:
    """Makes changed copies of records, one record after the other.

    Args:
        config: How many, and in which ways they differ.
        texts: What may stand before a prompt that it has nothing to do with.
        seed: Decides everything; the copies of a record depend on those made before.
    """

    def __init__(self, config: AugmentConfig, texts: Sequence[str], seed: int) -> None:
        self._num_copies = config.copies
        self._generator = torch.Generator().manual_seed(seed)
        self._changes: list[tuple[float, Augmentation]] = [
            (config.shuffling, shuffle_words),
            (config.casing, change_case),
            (config.rephrase, rephrase),
        ]
        if texts:
            self._changes.append((config.context, mixing(texts)))

    def copies(self, lesson: Lesson) -> list[Lesson]:
        """Return the copies of a record; those that are no others are left out."""
        found = []
        for _ in range(self._num_copies):
            copy = lesson
            for chance, change in self._changes:
                # Drawn in any case, so that one chance does not decide what others bring.
                if float(torch.rand((), generator=self._generator)) < chance:
                    copy = change(copy, self._generator)
            if copy != lesson:
                found.append(copy)
        return found


def rephrase(lesson: Lesson, generator: torch.Generator) -> Lesson:
    """Put a prompt into a frame of other words."""
    frame = _FRAMES[_below(len(_FRAMES), generator)]
    return _with_prompt(lesson, frame.format)


def change_case(lesson: Lesson, generator: torch.Generator) -> Lesson:
    """Write some words of a prompt in small or capital letters."""

    def change(prompt: str) -> str:
        words = prompt.split(" ")
        for i in _chosen(len(words) - 1, generator):
            capital = _below(2, generator)
            words[i] = words[i].upper() if capital else words[i].lower()
        return " ".join(words)

    return _with_prompt(lesson, change)


def shuffle_words(lesson: Lesson, generator: torch.Generator) -> Lesson:
    """Let some neighbouring words of a prompt change places."""

    def change(prompt: str) -> str:
        words = prompt.split(" ")
        for i in _chosen(len(words) - 2, generator):
            words[i], words[i + 1] = words[i + 1], words[i]
        return " ".join(words)

    return _with_prompt(lesson, change)


def mixing(texts: Sequence[str]) -> Augmentation:
    """Return an augmentation that puts one of these texts, shortened, before a prompt."""

    def mix(lesson: Lesson, generator: torch.Generator) -> Lesson:
        text = texts[_below(len(texts), generator)].replace("\x00", "")[:_CONTEXT_CHARS]
        return _with_prompt(lesson, lambda prompt: f"Unrelated: {text}\n\n{prompt}")

    return mix


def without_tokens(
    sample: Sample, generator: torch.Generator, *, share: float, kept: Collection[int]
) -> Sample:
    """Leave out a share of the tokens before the first that counts.

    Args:
        sample: It keeps all tokens from the first that counts on, and the one before it.
        generator: Decides which.
        share: How many of the others go.
        kept: Tokens that stay: control tokens, of which chats are made.
    """
    first = sample.counts.index(True)
    drawn = torch.rand(len(sample.counts), generator=generator).tolist()
    stays = [
        i == 0 or i >= first - 1 or drawn[i] >= share or token in kept
        for i, token in enumerate(sample.token_ids)
    ]
    return Sample(
        tuple(token for token, stay in zip(sample.token_ids, stays, strict=True) if stay),
        tuple(mark for mark, stay in zip(sample.counts, stays, strict=True) if stay),
        sample.weight,
    )


def _with_prompt(lesson: Lesson, change: Callable[[str], str]) -> Lesson:
    """Change what is asked: of chats the question before the first answer that counts."""
    match lesson:
        case Completion():
            return replace(lesson, prompt=change(lesson.prompt))
        case Instruction():
            return replace(lesson, instruction=change(lesson.instruction))
        case Chat():
            return _with_question(lesson, change)
        case _:  # a text has no prompt
            return lesson


def _with_question(chat: Chat, change: Callable[[str], str]) -> Chat:
    messages = list(chat.messages)
    roles = [message.get("role") for message in messages]
    answers = [i for i, role in enumerate(roles) if role == "assistant" and i >= chat.begin]
    before = range(answers[0] if answers else 0)
    for i in reversed(before):
        content = messages[i].get("content")
        if roles[i] == "user" and isinstance(content, str):
            messages[i] = {**messages[i], "content": change(content)}
            break
    return replace(chat, messages=tuple(messages))


def _chosen(count: int, generator: torch.Generator) -> list[int]:
    """Choose some of the first places; the last word of a prompt is where its answer begins."""
    if count < 1:
        return []
    drawn = torch.rand(count, generator=generator)
    return (drawn < _NOISE_SHARE).nonzero()[:, 0].tolist()


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
