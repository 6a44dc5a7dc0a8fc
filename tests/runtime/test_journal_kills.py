"""Kills at random moments: nothing acknowledged is lost, nothing is published by half."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyprstream.refs import AdapterName
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.publishing import recover
from hyprstream.store.store import AdapterStore
from tests.runtime.learning_process import ENDS

ROOT = Path(__file__).parents[2]


def start(folder: Path, num_versions: int, share: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "tests.runtime.learning_process", str(folder)]
    return subprocess.Popen(
        [*command, str(num_versions), str(share)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def look(folder: Path, acknowledged: set[int]) -> int:
    """Check everything that the disk says; return how many versions were decided about."""
    journal = Journal(folder / "journal.db")
    store = AdapterStore(folder / "adapters")
    adapters = Adapters(store)
    recover(journal, adapters)
    rows = journal._db.execute("SELECT source, fate, id FROM samples").fetchall()
    assert {f"r{number}" for number in acknowledged} <= {source for source, _, _ in rows}
    assert store.verify() == ()
    moves = [move.version for move in store.history(AdapterName("a"))]
    decisions = journal.decisions()
    published = [d for d in decisions if d.action in ("published", "promoted")]
    # Every promotion is in the journal, once, and nothing else is.
    assert [decision.version for decision in published] == moves[1:]
    assert all(d.parent == before for d, before in zip(published, moves, strict=False))
    ended = [d.version for d in decisions if d.action in ("promoted", "withdrawn")]
    begun = [d.version for d in decisions if d.action == "canary"]
    out = [canary.version for canary in adapters.canaries.all().values()]
    assert begun == [*ended, *out]
    assert list(store.tags(AdapterName("a")).values()) == out
    made = [d for d in decisions if d.action in ("published", "canary")]
    used = [number for decision in made for number in decision.samples]
    assert len(used) == len(set(used))
    assert set(used) == {number for _, fate, number in rows if fate == "used"}
    assert not [d for d in decisions if d.action == "publishing"]
    journal.close()
    adapters.close()
    return sum(decision.action in ENDS for decision in decisions)


def survive(folder: Path, num_kills: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    acknowledged: set[int] = set()
    published = 0
    for _ in range(num_kills):
        with start(folder, 1_000_000, chance.choice([0.0, 0.3])) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.5))
            process.kill()
            acknowledged |= {int(line) for line in process.stdout.read().split()}
        published = look(folder, acknowledged)
    with start(folder, published + 2, 0.3) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    acknowledged |= {int(line) for line in output.split()[1:]}
    assert look(folder, acknowledged) >= published + 2


def test_learning_survives_a_few_kills(tmp_path):
    survive(tmp_path, 3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_learning_survives_fifty_kills(tmp_path):
    survive(tmp_path, 50, seed=2)
