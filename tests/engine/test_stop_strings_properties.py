"""For every text, every stop strings and every way to cut the text into pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.engine.stop_strings import StopStrings

# Two letters make overlapping, nested and repetitive stop strings likely.
_LETTERS = "ab"
_STOPS = st.lists(st.text(_LETTERS, min_size=1, max_size=9), max_size=4)
_PIECES = st.lists(st.text(_LETTERS, max_size=9), max_size=12)


def _first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Brute force: the end and the text of the stop string completed first."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


def _longest_hope(text: str, stops: list[str]) -> int:
    """Brute force: length of the longest end of `text` that begins a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


@settings(deadline=None, max_examples=400)
@given(stops=_STOPS, pieces=_PIECES)
def test_the_text_is_cut_before_the_first_stop_string(stops, pieces):
    text = "".join(pieces)
    matcher = StopStrings(stops)
    emitted = "".join([matcher.push(piece) for piece in pieces])
    emitted += matcher.finish()
    first = _first_stop(text, stops)
    if first is None:
        assert (emitted, matcher.matched) == (text, None)
    else:
        end, stop = first
        assert (emitted, matcher.matched) == (text[: end - len(stop)], stop)


@settings(deadline=None, max_examples=400)
@given(stops=_STOPS, pieces=_PIECES)
def test_including_the_stop_string_adds_just_that(stops, pieces):
    without, including = StopStrings(stops), StopStrings(stops, include_stop=True)
    short = "".join([without.push(piece) for piece in pieces]) + without.finish()
    long = "".join([including.push(piece) for piece in pieces]) + including.finish()
    assert long == short + (without.matched or "")


@settings(deadline=None, max_examples=400)
@given(stops=_STOPS, pieces=_PIECES)
def test_exactly_the_text_that_may_become_a_stop_string_is_held_back(stops, pieces):
    matcher = StopStrings(stops)
    text = emitted = ""
    for piece in pieces:
        text += piece
        emitted += matcher.push(piece)
        if matcher.matched is not None:
            break
        assert emitted == text[: len(text) - _longest_hope(text, stops)]


@settings(deadline=None, max_examples=400)
@given(stops=_STOPS, text=st.text(_LETTERS, max_size=40), data=st.data())
def test_the_pieces_do_not_matter(stops, text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, cut = StopStrings(stops), StopStrings(stops)
    one = whole.push(text) + whole.finish()
    many = "".join([cut.push(piece) for piece in pieces]) + cut.finish()
    assert (one, whole.matched) == (many, cut.matched)
