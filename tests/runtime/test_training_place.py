"""Where a training lies: who holds it, how far it is, and how it is asked to stop."""

import os
import threading

import pytest

from hyprstream.errors import CacheBusyError, InvalidReferenceError
from hyprstream.runtime.training_place import TrainingPlace, Working

WORKING = Working(
    pid=os.getpid(), source="samples", began=7.0, phase="learning", step=3, num_steps=9, loss=1.5,
    held_out_loss=2.0, curve=((1, 2.0, None), (3, 1.5, 2.0)),
)  # fmt: skip


@pytest.fixture
def place(tmp_path) -> TrainingPlace:
    return TrainingPlace(tmp_path, "team/poet")


def test_one_process_holds_a_place_and_others_see_how_far_it_is(place, tmp_path):
    other = TrainingPlace(tmp_path, "team/poet")
    assert (other.is_held(), other.working()) == (False, None)
    with place.hold():
        assert (other.is_held(), other.working()) == (True, None)
        place.tell(WORKING)
        assert other.working() == WORKING
        with pytest.raises(CacheBusyError, match="the training of team/poet"), other.hold():
            pass
    assert (other.is_held(), other.working()) == (False, None)
    assert {file.name for file in place.folder.iterdir()} == {"lock"}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff", WORKING.phase.encode() * 10]
)
def test_what_another_program_left_says_nothing(place, data):
    with place.hold():
        (place.folder / "working.json").write_bytes(data)
        assert place.working() is None


def test_who_is_asked_to_stop_does_and_the_next_one_is_not_asked(place, tmp_path):
    began = threading.Event()

    def train() -> None:
        with place.hold():
            began.set()
            while not place.is_stop_wanted:
                pass

    thread = threading.Thread(target=train)
    thread.start()
    began.wait()
    assert TrainingPlace(tmp_path, "team/poet").stop(60.0)
    thread.join()
    (place.folder / "stop").touch()  # of somebody who came late
    with place.hold():
        assert not place.is_stop_wanted


def test_waiting_for_a_stop_ends(place, tmp_path):
    times = iter(range(100))
    with place.hold():
        other = TrainingPlace(tmp_path, "team/poet")
        stopped = other.stop(5.0, sleep=lambda _: None, clock=lambda: float(next(times)))
        assert not stopped
        assert place.is_stop_wanted
    assert not place.stop(0.0)  # nobody is there


def test_a_name_that_leads_elsewhere_has_no_place(tmp_path):
    with pytest.raises(InvalidReferenceError):
        TrainingPlace(tmp_path, "../poet")
