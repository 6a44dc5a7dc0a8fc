"""Asks many at once: one that fails or is slow does not spoil the answers of the rest."""

import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import TypeVar

from hyprstream.errors import HyprstreamError, RegistryUnreachableError, UnavailableError

_Answer = TypeVar("_Answer")


def ask_all(
    questions: Mapping[str, Callable[[], _Answer]], *, limit_s: float
) -> tuple[dict[str, _Answer], dict[str, HyprstreamError]]:
    """Ask each on a thread of its own and wait for all of them together.

    Args:
        questions: What to ask, by the name of whom. One that outlives the limit is left alone
            and ends with the process at the latest.
        limit_s: How long to wait.

    Returns:
        Answers and failures, by name, in the order of `questions`.
    """
    arrived: SimpleQueue[tuple[str, _Answer | HyprstreamError]] = SimpleQueue()

    def ask(name: str, question: Callable[[], _Answer]) -> None:
        try:
            arrived.put((name, question()))
        except HyprstreamError as error:
            arrived.put((name, error))
        except Exception as error:  # noqa: BLE001  # a bug in one is no reason to lose the others
            arrived.put((name, UnavailableError(f"{name} failed: {type(error).__name__}: {error}")))

    for name, question in questions.items():
        threading.Thread(target=ask, args=(name, question), daemon=True).start()
    deadline = time.monotonic() + limit_s
    outcome: dict[str, _Answer | HyprstreamError] = {}
    try:
        while len(outcome) < len(questions):
            name, answer = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            outcome[name] = answer
    except Empty:
        pass
    answers: dict[str, _Answer] = {}
    failures: dict[str, HyprstreamError] = {}
    for name in questions:
        late = RegistryUnreachableError(
            f"{name} did not answer within {limit_s:g} seconds",
            hint="Try again, or leave it out by naming another registry.",
        )
        answer = outcome.get(name, late)
        if isinstance(answer, HyprstreamError):
            failures[name] = answer
        else:
            answers[name] = answer
    return answers, failures
