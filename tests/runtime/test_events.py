"""Events: kept within bounds, in order, resumed, and told to those who are too slow."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.events import MOST, Event, Events, ToldDecisions
from hyprstream.runtime.journal_rows import Decision
from hyprstream.runtime.learners import LessonProgress
from hyprstream.store.records import Move, Note

POET = AdapterName("poet")
PARENT = VersionId("a" * 64)
START = datetime(2026, 1, 1, tzinfo=UTC)


def step(number: int) -> LessonProgress:
    return LessonProgress(
        adapter=POET, parent=PARENT, phase="learning", step=number, num_steps=9, loss=1.0,
        num_tokens=number,
    )  # fmt: skip


def decision(action="rejected") -> Decision:
    return Decision(adapter=POET, action=action, parent=PARENT, reasons=("no",), numbers={"x": 1.0})


class Moves:
    """A store of which names are moved by somebody else."""

    def __init__(self):
        self.moves = []

    def move(self, action="promote"):
        at = START + timedelta(seconds=len(self.moves))
        self.moves.append((POET, Move(action=action, version=PARENT, at=at, note=Note(by="me"))))

    async def after(self, moment, most):
        return [one for one in self.moves if one[1].at > moment][-most:]


async def take(followed, number: int) -> list[Event]:
    async with asyncio.timeout(5):
        return [await anext(followed) for _ in range(number)]


def run(scenario):
    async def main():
        moves = Moves()
        await scenario(Events(moves.after, clock=lambda: 5.0), moves)
        assert len(asyncio.all_tasks()) == 1, "somebody still looks"

    asyncio.run(main())


def test_who_comes_late_is_told_what_was_and_then_what_is():
    async def scenario(events, moves):
        moves.move()
        events.tell(step(1))
        followed = events.follow()
        kinds = [event.kind for event in await take(followed, 2)]
        assert kinds == ["progress", "move"]
        threading.Thread(target=events.tell, args=(decision(),)).start()
        [found] = await take(followed, 1)
        assert (found.kind, found.adapter, found.at) == ("decision", POET, 5.0)
        assert found.data["reasons"] == ["no"]
        moves.move("rollback")  # by another process
        [found] = await take(followed, 1)
        assert (found.kind, found.data["action"], found.data["by"]) == ("move", "rollback", "me")
        await followed.aclose()

    run(scenario)


def test_it_goes_on_after_what_was_seen():
    async def scenario(events, _):
        for number in range(6):
            events.tell(step(number))
        followed = events.follow(4)
        assert [e.data["step"] for e in await take(followed, 2)] == [4, 5]
        await followed.aclose()

    run(scenario)


def test_steps_push_no_decision_out_and_memory_is_bounded():
    async def scenario(events, _):
        events.tell(decision())
        most = MOST["progress"]
        for number in range(3 * most):
            events.tell(step(number))
        followed = events.follow()
        found = await take(followed, most + 1)
        assert [event.kind for event in found] == ["decision", *["progress"] * most]
        assert found[-1].data["step"] == 3 * most - 1
        await followed.aclose()

    run(scenario)


def test_what_cannot_be_gone_on_with_begins_anew():
    async def scenario(events, _):
        for number in range(MOST["progress"] + 5):
            events.tell(step(number))
        for seen in (-1, 1, 10**9):
            followed = events.follow(seen)
            first, second = await take(followed, 2)
            assert (first.kind, first.number) == ("reset", 0)
            assert second.data["step"] == 5
            await followed.aclose()
        slow = events.follow()
        await take(slow, MOST["progress"] + 5 - 5)
        for number in range(MOST["progress"] + 1):
            events.tell(step(1000 + number))
        assert [event.kind for event in await take(slow, 2)] == ["reset", "progress"]
        await slow.aclose()

    run(scenario)


def test_it_ends_when_it_is_closed_or_after_its_time():
    async def scenario(events, _):
        async with asyncio.timeout(5):
            assert [event async for event in events.follow(seconds=0.01)] == []
            waiting = asyncio.create_task(anext(events.follow(), None))
            await asyncio.sleep(0)
            events.close()
            assert await waiting is None

    run(scenario)


def test_decisions_are_told_when_they_are_final():
    class Log:
        def decide(self, decision, fate=None):
            del decision, fate
            return 7

        def resolve(self, number, action, fate=None):
            del fate
            assert (number, action) == (7, "published")

    told: list[Decision] = []
    log = ToldDecisions(Log(), told.append)
    log.decide(decision("rejected"))
    assert log.decide(decision("publishing")) == 7
    assert [one.action for one in told] == ["rejected"]
    log.resolve(7, "published")
    assert [one.action for one in told] == ["rejected", "published"]
