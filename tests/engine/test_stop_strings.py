"""Single cases of StopStrings; what holds for all of them is in the properties."""

import pytest

from hyprstream.engine.stop_strings import StopStrings


def _stream(stops: StopStrings, pieces: list[str]) -> list[str]:
    return [stops.push(piece) for piece in pieces]


def test_without_stop_strings_every_piece_comes_back_at_once():
    stops = StopStrings([])
    assert _stream(stops, ["ab", "", "c"]) == ["ab", "", "c"]
    assert stops.finish() == ""
    assert stops.matched is None


def test_text_is_cut_before_a_stop_string_inside_one_piece():
    stops = StopStrings(["END"])
    assert stops.push("one END two") == "one "
    assert stops.matched == "END"


def test_a_stop_string_may_spread_over_many_pieces():
    stops = StopStrings(["\nUser:"])
    assert _stream(stops, ["Hi\n", "Us", "er", ": no"]) == ["Hi", "", "", ""]
    assert stops.matched == "\nUser:"


def test_a_beginning_that_comes_to_nothing_is_emitted_after_all():
    stops = StopStrings(["\nUser:"])
    assert _stream(stops, ["\nUs", "ual"]) == ["", "\nUsual"]


def test_only_the_part_that_may_go_on_stays_back():
    stops = StopStrings(["aab"])
    assert _stream(stops, ["a", "a", "a", "a", "b"]) == ["", "", "a", "a", ""]


def test_the_held_text_comes_out_when_the_stream_ends():
    stops = StopStrings(["###"])
    assert stops.push("a##") == "a"
    assert stops.finish() == "##"
    assert stops.finish() == ""


def test_after_a_match_nothing_comes_out():
    stops = StopStrings(["."])
    assert _stream(stops, ["a.b", "c", "."]) == ["a", "", ""]
    assert stops.finish() == ""


def test_the_stop_string_completed_first_wins_over_one_that_began_before_it():
    stops = StopStrings(["abcd", "bc"])
    assert stops.push("abcd") == "a"
    assert stops.matched == "bc"


def test_of_two_completed_together_the_longer_wins():
    stops = StopStrings(["c", "abc", "bc"])
    assert stops.push("xabc") == "x"
    assert stops.matched == "abc"


def test_a_stop_string_inside_a_longer_one_that_fails_is_found():
    stops = StopStrings(["abxy", "bz"])
    assert _stream(stops, ["ab", "z"]) == ["", "a"]
    assert stops.matched == "bz"


def test_a_stop_string_is_found_though_several_beginnings_fail_before_it():
    stops = StopStrings(["bbbaa", "ba"])  # bbba, bba and then ba
    assert stops.push("bbba") == "bb"
    assert stops.matched == "ba"


def test_the_stop_string_is_emitted_if_asked_for():
    stops = StopStrings(["END"], include_stop=True)
    assert _stream(stops, ["one E", "ND two"]) == ["one ", "END"]


def test_characters_outside_ascii_are_single_characters():
    stops = StopStrings(["\u3002\U0001f600"])
    assert _stream(stops, ["\u4f60\u3002", "\U0001f600\u4f60"]) == ["\u4f60", ""]


def test_an_empty_stop_string_is_our_own_mistake():
    with pytest.raises(AssertionError):
        StopStrings([""])


def test_a_long_stop_string_does_not_slow_the_stream_down():
    # Twice over: copying what is held back for every piece, or going all the way back from
    # every "b", would take 10^9 steps here and run into the time limit.
    stop = ("a" * 20_000 + "c") * 2
    stops = StopStrings([stop])
    text = ("a" * 20_000 + "b") * 2
    emitted = _stream(stops, list(text))
    assert "".join(emitted) == text
