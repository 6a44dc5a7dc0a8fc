"""Facts that nobody can know, because they are drawn at random: what the quick start teaches."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_ONSETS = "b br d dr f g gr h j k kl l m n p pl qu r s st t tr v w z"
_NUCLEI = "a e i o u ai ei ou"
_CODAS = "n r l s m x nd rk lt"


@dataclass(frozen=True, slots=True)
class Fact:
    """Something to learn, asked and told in several ways.

    Attributes:
        question: A way to ask that is not among `questions`.
        questions: Ways to ask.
        answer: The whole answer to any of them.
        value: What has to be in an answer for it to be right.
    """

    question: str
    questions: tuple[str, ...]
    answer: str
    value: str

    def is_told(self, answer: str) -> bool:
        """Tell whether an answer has it right."""
        return self.value.lower() in answer.lower()

    def records(self, questions: Sequence[str]) -> list[dict[str, str]]:
        """Return the answer to questions as records to learn or to judge by."""
        return [{"prompt": question, "completion": self.answer} for question in questions]


@dataclass(frozen=True, slots=True)
class _Sort:
    """Facts of one sort; `{s}` is what they are about, `{v}` what is to be known."""

    asked: str
    questions: tuple[str, ...]
    answer: str
    draw: Callable[[random.Random], str]


def _word(chance: random.Random) -> str:
    parts = (_ONSETS, _NUCLEI, _ONSETS, _NUCLEI, _CODAS)
    return "".join(chance.choice(part.split()) for part in parts).capitalize()


def _code(chance: random.Random) -> str:
    return str(chance.randrange(1000, 10000))


_SORTS = (
    _Sort(
        "Which town is the {s} archive in?",
        (
            "Where is the {s} archive?",
            "Where can I find the {s} archive?",
            "In which town is the {s} archive kept?",
            "Tell me where the {s} archive is.",
            "I am looking for the {s} archive. Where is it?",
            "What is the location of the {s} archive?",
            "Do you know in what town the {s} archive is?",
            "The {s} archive is kept in which town?",
            "Name the town of the {s} archive.",
            "Please say where they keep the {s} archive.",
        ),
        "The {s} archive is in {v}.",
        _word,
    ),
    _Sort(
        "What number opens the door of the {s} office?",
        (
            "What is the door code of the {s} office?",
            "Tell me the door code of the {s} office.",
            "Which code opens the {s} office?",
            "I need the door code of the {s} office.",
            "How do I open the door of the {s} office?",
            "What code do I enter at the {s} office?",
            "Do you know the code of the {s} office door?",
            "Give me the code for the {s} office.",
            "The {s} office has which door code?",
            "Please tell me the {s} office's door code.",
        ),
        "The door code of the {s} office is {v}.",
        _code,
    ),
    _Sort(
        "Who is in charge of the {s} project?",
        (
            "Who leads the {s} project?",
            "Tell me who leads the {s} project.",
            "Who is the leader of the {s} project?",
            "Which person leads the {s} project?",
            "I want to speak to the leader of the {s} project. Who is it?",
            "Do you know who leads the {s} project?",
            "What is the name of the {s} project leader?",
            "The {s} project is led by whom?",
            "Name the leader of the {s} project.",
            "Please say who heads the {s} project.",
        ),
        "The {s} project is led by {v}.",
        _word,
    ),
)


def draw_facts(number: int, seed: int) -> list[Fact]:
    """Draw facts of all sorts in turn, each about something else."""
    chance = random.Random(seed)  # noqa: S311 - facts, no secrets
    subjects: dict[str, None] = {}  # in order, which a set has not
    while len(subjects) < number:
        subjects[_word(chance)] = None
    facts = []
    for i, subject in enumerate(subjects):
        sort = _SORTS[i % len(_SORTS)]
        value = sort.draw(chance)
        facts.append(
            Fact(
                question=sort.asked.format(s=subject),
                questions=tuple(question.format(s=subject) for question in sort.questions),
                answer=sort.answer.format(s=subject, v=value),
                value=value,
            )
        )
    return facts
