"""Several processes, some of which are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from hyprstream.errors import StaleParentError
from hyprstream.refs import AdapterName
from hyprstream.store.store import AdapterStore
from tests.store.fakes import draft

NAME = AdapterName("support")
_HERE = Path(__file__).parent


@contextmanager
def program(name: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-P", _HERE / name, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("num_lines", [1, 4, 7])
def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path: Path, num_lines: int):
    acknowledged: list[str] = []
    for _ in range(2):  # the second one goes on where the first one was killed
        with program("endless.py", tmp_path) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(num_lines)]
            process.send_signal(signal.SIGKILL)
            acknowledged += [*lines, *process.stdout.read().split()]
        store = AdapterStore(tmp_path)
        moved = [move.version for move in store.history(NAME)]
        # One more may have happened whose acknowledgement was lost with the process.
        assert moved[: len(acknowledged)] == acknowledged
        acknowledged = [*moved]
        assert store.verify() == ()
        with store.open(store.current(NAME)) as file:
            assert file.stat().st_size > 0
        store.collect(grace=timedelta(0))
        assert list((tmp_path / "temp").iterdir()) == []
        assert store.verify() == ()
        store.close()


@pytest.mark.slow
def test_a_process_may_be_killed_at_any_time(tmp_path: Path):
    """Again and again, in one store, at times that no order of the program favours."""
    acknowledged: list[str] = []
    random = Random(7)  # noqa: S311 - times of a test
    for _ in range(40):
        with program("endless.py", tmp_path) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip()]
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(random.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            acknowledged += [*lines, *process.stdout.read().split()]
        store = AdapterStore(tmp_path)
        moved = [move.version for move in store.history(NAME)]
        assert moved[: len(acknowledged)] == acknowledged
        assert len(moved) <= len(acknowledged) + 1
        acknowledged = [*moved]
        assert store.verify() == ()
        store.close()


def test_of_processes_that_move_a_name_at_once_one_wins(tmp_path: Path):
    store = AdapterStore(tmp_path)
    start = store.commit(b"start", draft())
    store.create(NAME, start)
    current, num_rounds = start, 20
    with program("racer.py", tmp_path) as one, program("racer.py", tmp_path) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for number in range(num_rounds):
            targets = [store.commit(b"%d %d" % (number, who), draft()) for who in (1, 2)]
            for process, target in zip((one, two), targets, strict=True):
                assert process.stdin is not None
                process.stdin.write(f"{current} {target}\n")
                process.stdin.flush()
            answers = [process.stdout.readline().strip() for process in (one, two)]  # type: ignore[union-attr]  # pipes were asked for
            assert sorted(answers) == ["stale", "won"]
            current = targets[answers.index("won")]
            assert store.current(NAME) == current
    assert len(store.history(NAME)) == num_rounds + 1
    store.close()


def test_two_stores_of_one_process_see_each_other(tmp_path: Path):
    one, two = AdapterStore(tmp_path), AdapterStore(tmp_path)
    first, second = one.commit(b"1", draft()), two.commit(b"2", draft())
    one.create(NAME, first)
    two.promote(NAME, second, expected=first)
    with pytest.raises(StaleParentError, match=first[:12]):
        one.promote(NAME, second, expected=first)
    assert one.current(NAME) == second
    with two.open(first) as file:
        one.collect(keep_history=0, grace=timedelta(0))
        assert file.read_bytes() == b"1"
        assert one.manifest(first).version == first
    assert one.collect(keep_history=0, grace=timedelta(0)).versions == (first,)
    one.close()
    two.close()


def test_what_another_process_reads_is_not_collected_until_it_ends(tmp_path: Path):
    store = AdapterStore(tmp_path)
    version = store.commit(b"read", draft())
    reader = (
        "import sys, pathlib\n"
        "from hyprstream.store.store import AdapterStore\n"
        "with AdapterStore(pathlib.Path(sys.argv[1])).open(sys.argv[2]):\n"
        "    print('reading', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", reader, tmp_path, version],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        assert store.collect(grace=timedelta(0)).versions == ()
        process.kill()  # it has no chance to let go
    assert store.collect(grace=timedelta(0)).versions == (version,)
    store.close()


def test_two_collections_at_once_remove_everything_once(tmp_path: Path):
    stores = [AdapterStore(tmp_path) for _ in range(2)]
    for number in range(200):
        stores[0].commit(b"%03d" % number, draft())
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda store: store.collect(grace=timedelta(0)), stores))
    assert sum(len(collected.versions) for collected in done) == 200
    assert sum(collected.freed_bytes for collected in done) == 600
    assert list((tmp_path / "payloads").iterdir()) == []
    for store in stores:
        store.close()


def test_new_stores_are_made_once_by_processes_that_begin_together(tmp_path: Path):
    maker = (
        "import sys, pathlib\n"
        "from hyprstream.store.store import AdapterStore\n"
        "sys.stdin.read()\n"
        "AdapterStore(pathlib.Path(sys.argv[1])).close()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", maker, tmp_path / "store"],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(30) for process in processes] == [0, 0, 0, 0]
