"""Measurements beside learning: in turns, one after the other, and nobody else's end."""

import pytest

from hyprstream.errors import InvalidRequestError, QueueFullError
from hyprstream.runtime.evaluation import MAX_WAITING, Evaluations


class Learning:
    """Work that is counted."""

    def __init__(self, slices: int) -> None:
        self.left = slices
        self.order: list[str] = []

    def ready(self) -> bool:
        return self.left > 0

    def run_slice(self) -> None:
        self.left -= 1
        self.order.append("learning")


def work(name: str, order: list[str], pieces: int = 3, error: Exception | None = None):
    for _ in range(pieces):
        order.append(name)
        yield
    if error is not None:
        raise error
    return name


def test_measurements_and_learning_take_turns():
    learning = Learning(3)
    evaluations = Evaluations(learning)
    first = evaluations.submit(work("a", learning.order, 2))
    second = evaluations.submit(work("b", learning.order, 2))
    while evaluations.ready():
        evaluations.run_slice()
    assert (first.result(0), second.result(0)) == ("a", "b")
    for name in ("learning", "a"):
        assert learning.order[:4].count(name) == 2
    assert learning.order.count("learning") == 3
    assert learning.order.index("b") > max(n for n, w in enumerate(learning.order) if w == "a")


@pytest.mark.parametrize("error", [InvalidRequestError("x", hint="y"), RuntimeError("ours")])
def test_one_that_fails_or_is_cancelled_ends_alone(error, caplog):
    order: list[str] = []
    evaluations = Evaluations(None)
    failing = evaluations.submit(work("a", order, 1, error))
    cancelled = evaluations.submit(work("b", order, 50))
    last = evaluations.submit(work("c", order, 1))
    cancelled.cancel()
    while evaluations.ready():
        evaluations.run_slice()
    assert failing.exception(0) is error
    assert last.result(0) == "c"
    assert order == ["a", "c"]
    assert ("a measurement has failed" in caplog.text) == isinstance(error, RuntimeError)


def test_there_are_not_too_many_and_those_that_are_left_are_cancelled():
    evaluations = Evaluations(None)
    futures = [evaluations.submit(work("a", [], 3)) for _ in range(MAX_WAITING)]
    with pytest.raises(QueueFullError):
        evaluations.submit(work("b", []))
    evaluations.run_slice()
    evaluations.close()
    assert all(future.cancelled() for future in futures)
    assert not evaluations.ready()
