"""Kills of the server under load: no sample is lost that was acknowledged, no version by half.

Clients send samples and ask for answers while adapters learn; then the process is killed, with
SIGKILL, at a random moment, and everything on the disk has to agree with what they were told.

Of a model of random weights the gate rejects what it learns, so there kills come while versions
are made and judged. A trained one publishes: of it the server is killed as soon as the journal says
that a publication has begun.
"""

import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from hyprstream.refs import AdapterName
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.publishing import recover
from hyprstream.runtime.settings import Settings
from hyprstream.store.store import AdapterStore
from tests.server.process import ServerProcess

POET = AdapterName("poet")
EAGER = {  # learning begins early and goes on
    "HYPRSTREAM_TRAIN__LEARNER__MIN_WAITING": "8",
    "HYPRSTREAM_TRAIN__LEARNER__MAX_SAMPLES": "8",
    "HYPRSTREAM_TRAIN__LEARNER__MIN_HELD_OUT": "8",
    "HYPRSTREAM_TRAIN__LEARNER__BUDGET__SECONDS": "100000",
    "HYPRSTREAM_TRAIN__LEARNER__BUDGET__STEPS": "1000000",
    "HYPRSTREAM_TRAIN__BUFFER__HELD_OUT_SHARE": "0.4",
    "HYPRSTREAM_TRAIN__GATE__MIN_HELD_OUT": "8",
    "HYPRSTREAM_TRAIN__GATE__ALPHA": "0.4",
    "HYPRSTREAM_TRAIN__GATE__MIN_GAIN": "-100",
    "HYPRSTREAM_TRAIN__GATE__MAX_REGRESSION": "100",
    "HYPRSTREAM_TRAIN__GATE__MAX_TOTAL_REGRESSION": "100",
    "HYPRSTREAM_TRAIN__GATE__MAX_SUSPECT_SHARE": "1",
    "HYPRSTREAM_TRAIN__GATE__MAX_NORM_GROWTH": "1000",
    "HYPRSTREAM_TRAIN__GATE__MAX_GRADIENT_RATIO": "1000",
}


TOYS = ("ball", "doll", "car", "kite", "drum", "boat", "train", "bear")
Body = dict[str, str]


def counting(name: str) -> Body:
    """A sample of which nothing can be learnt."""
    words = " ".join(str(len(name) + step) for step in range(6))
    return {"prompt": f"Count for {name}.", "completion": words, "user": name}


def story(name: str) -> Body:
    """A sample that a model of stories learns, and whose answer belongs to its prompt."""
    one, other = random.Random(name).sample(TOYS, 2)  # noqa: S311
    return {
        "prompt": f"Zed has a {one} and a {other}. ({name}) ",
        "completion": f"Once upon a time, there was a little fox named Zed. He liked to play "
                      f"with his {one} and his {other} in the park.",
        "user": name,
    }  # fmt: skip


PUBLISHING = {  # the gate as it is, but for the few samples it gets
    "HYPRSTREAM_TRAIN__LEARNER__MIN_WAITING": "16",
    "HYPRSTREAM_TRAIN__LEARNER__MAX_SAMPLES": "16",
    "HYPRSTREAM_TRAIN__LEARNER__BUDGET__SECONDS": "100000",
    "HYPRSTREAM_TRAIN__LEARNER__BUDGET__STEPS": "1000000",
    "HYPRSTREAM_TRAIN__BUFFER__HELD_OUT_SHARE": "0.4",
}


class Clients:
    """Threads that send and ask until the server is gone, and what they were told."""

    def __init__(
        self, server: ServerProcess, chance: random.Random, sample: Callable[[str], Body]
    ) -> None:
        self._sample = sample
        self.kept: set[str] = set()
        self.num_answers = 0
        self.errors: list[str] = []
        self._server = server
        self._seed = chance.randrange(1 << 30)
        self._threads = [threading.Thread(target=self._run, args=(work, n))
                         for n, work in enumerate((self._send, self._send, self._ask))]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def wait(self, number: int) -> None:
        """Wait until so many samples were acknowledged."""
        until = time.monotonic() + 60
        while len(self.kept) < number and not self.errors:
            assert time.monotonic() < until, f"{len(self.kept)} samples were acknowledged"
            time.sleep(0.005)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _run(self, work, number: int) -> None:
        with self._server.client() as client:
            for turn in range(1_000_000):
                try:
                    work(client, f"{self._seed}-{number}-{turn}")
                except httpx.TransportError:
                    return  # it was killed

    def _send(self, client: httpx.Client, name: str) -> None:
        answer = client.post("/v1/adapters/poet/samples", json=self._sample(name))
        if answer.status_code != 200:
            self.errors.append(answer.text)
        elif set(answer.json()["results"][0]["recorded"]) <= {"waiting", "held_out"}:
            self.kept.add(name)

    def _ask(self, client: httpx.Client, name: str) -> None:
        body = {"model": "poet", "prompt": name, "max_tokens": 8, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            done = [line for line in answer.iter_lines() if line]
        if answer.status_code != 200 or done[-1] != "data: [DONE]":
            self.errors.append(str(done[-1:]))
        self.num_answers += 1


def look(home: Path, kept: set[str]) -> int:
    """Check everything that the disk says; return the number of published versions."""
    settings = Settings(home=home)
    store = AdapterStore(settings.adapters_folder)
    adapters, journal = Adapters(store), Journal(settings.journal_file)
    recover(journal, adapters)
    decisions = journal.decisions(POET)
    journal.close()
    with closing(sqlite3.connect(settings.journal_file)) as db:
        rows = db.execute("SELECT user, fate, id FROM samples").fetchall()
    lost = kept - {user for user, _, _ in rows}
    assert not lost, f"{len(lost)} of {len(kept)} samples were acknowledged and are not there"
    assert store.verify() == ()
    moves = [move.version for move in store.history(POET)]
    published = [decision for decision in decisions if decision.action == "published"]
    # Each promotion of learning is in the journal, once, and nothing else is.
    assert [decision.version for decision in published] == moves[1:]
    assert not [decision for decision in decisions if decision.action == "publishing"]
    used = [number for decision in published for number in decision.samples]
    assert len(used) == len(set(used))
    assert set(used) == {number for _, fate, number in rows if fate == "used"}
    adapters.tensors(adapters.resolve("poet"))  # the one that would serve is whole
    adapters.close()
    return len(published)


def survive(home: Path, num_kills: int, seed: int) -> tuple[int, int]:
    """Kill a server again and again; return samples that were kept, and versions."""
    chance = random.Random(seed)  # noqa: S311
    kept: set[str] = set()
    num_published = 0
    for number in range(num_kills):
        with ServerProcess(home, **EAGER) as server:
            if number == 0:
                with server.client() as client:
                    start = {"learn": "feedback"}
                    client.post("/v1/training/poet/start", json=start).raise_for_status()
            clients = Clients(server, chance, counting)
            clients.wait(chance.randrange(1, 80))
            time.sleep(chance.uniform(0.0, 0.1))
            assert server.process.poll() is None, server.log  # nobody else has ended it
            server.process.kill()
            clients.join()
            assert "Traceback" not in server.log, server.log
        assert not clients.errors, clients.errors[:3]
        kept |= clients.kept
        num_published = look(home, kept)
    return len(kept), num_published


@pytest.fixture
def alone(home, tmp_path) -> Path:
    folder = tmp_path / "killed"
    shutil.copytree(home[0], folder, ignore=shutil.ignore_patterns("keys", "learning"))
    return folder


def test_a_kill_loses_no_sample_that_was_acknowledged(alone):
    survive(alone, 1, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_lose_no_sample_and_no_version(alone):
    survive(alone, 30, seed=2)
    with ServerProcess(alone, **EAGER) as server, server.client() as client:
        body = {"model": "poet", "prompt": "x", "max_tokens": 4}
        client.post("/v1/completions", json=body).raise_for_status()
        assert server.end() == 0


class Publications:
    """Looks into the journal of a server, as fast as it can, for one that has begun."""

    def __init__(self, home: Path) -> None:
        self._file = Settings(home=home).journal_file
        self._last = self._newest()

    def wait(self) -> None:
        """Return as soon as a decision to publish is there that was not before."""
        until = time.monotonic() + 120
        while self._newest() == self._last:
            assert time.monotonic() < until, "nothing was published"
            time.sleep(0.0005)

    def _newest(self) -> int:
        with closing(sqlite3.connect(self._file, timeout=10)) as db:
            rows = db.execute(
                "SELECT max(id) FROM decisions WHERE action IN ('publishing', 'published')"
            ).fetchone()
        return rows[0] or 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_in_the_middle_of_a_publication_leave_all_of_it_or_nothing(test_data, tmp_path):
    shutil.copytree(test_data / "stories260K" / "hf", tmp_path / "model")
    chance = random.Random(3)  # noqa: S311
    kept: set[str] = set()
    counts = [0]
    for number in range(5):
        with ServerProcess(tmp_path, **PUBLISHING) as server:
            if number == 0:
                with server.client() as client:
                    client.post("/v1/adapters", json={"name": "poet"}).raise_for_status()
                    start = {"learn": "feedback"}
                    client.post("/v1/training/poet/start", json=start).raise_for_status()
            publications = Publications(tmp_path)
            clients = Clients(server, chance, story)
            publications.wait()
            time.sleep(chance.uniform(0.0, 0.02) * (number % 4))
            assert server.process.poll() is None, server.log
            server.process.kill()
            clients.join()
            assert "Traceback" not in server.log, server.log
        assert not clients.errors, clients.errors[:3]
        kept |= clients.kept
        counts.append(look(tmp_path, kept))
    grown = [now - before for before, now in pairwise(counts)]
    assert set(grown) <= {0, 1}, grown  # each as a whole, or not at all
    assert 1 in grown
