"""Pictures of losses: what is drawn is where it should be, in both formats."""

import struct
import xml.etree.ElementTree as ET
import zlib

import pytest

from hyprstream.cli.curves import HEIGHT, WIDTH, Line, Word, drawing, png, svg, write_curves
from hyprstream.errors import InvalidRequestError
from hyprstream.train.run import Point

CURVE = [
    Point(step=0, loss=None, held_out_loss=3.0),
    Point(step=1, loss=4.0, held_out_loss=None),
    Point(step=2, loss=float("inf"), held_out_loss=1.0),
    Point(step=4, loss=2.0, held_out_loss=1.5),
]


def lines() -> list[Line]:
    return [s for s in drawing(CURVE) if isinstance(s, Line)][-2:]


def test_curves_stand_where_their_losses_say():
    training, held_out = lines()
    assert [len(training.points), len(held_out.points)] == [2, 3]
    (x0, y0), (x1, y1), (x2, y2) = held_out.points
    assert x1 - x0 == x2 - x1, "steps 0, 2 and 4"
    assert (y0 - y1) / (y0 - y2) == pytest.approx((3 - 1) / (3 - 1.5))
    assert y1 > y0, "a lower loss is lower down"
    assert training.points[0][1] < y0
    for x, y in (*training.points, *held_out.points):
        assert 0 < x < WIDTH
        assert 0 < y < HEIGHT


def test_svg_is_xml_with_both_curves():
    root = ET.fromstring(svg(drawing(CURVE)))  # noqa: S314  # our own
    found = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(found[-1].attrib["points"].split()) == 3
    texts = [word.text for word in root.findall("{http://www.w3.org/2000/svg}text")]
    assert {"training loss", "held-out loss", "step"} <= set(texts)


def pixels(data: bytes) -> list[bytes]:
    """The rows of a PNG of 8 bits RGB without filters, every checksum verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    parts, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(body)
        parts[body[:4]] = body[4:]
        at += 12 + length
    width, height, *kind = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert kind == [8, 2, 0, 0, 0]
    rows = zlib.decompress(parts[b"IDAT"])
    step = 3 * width + 1
    assert len(rows) == height * step
    assert set(rows[::step]) == {0}
    return [rows[i + 1 : i + step] for i in range(0, len(rows), step)]


def test_png_has_dots_where_the_curve_is():
    rows = pixels(png(drawing(CURVE)))
    assert (len(rows), len(rows[0])) == (HEIGHT, 3 * WIDTH)
    _, held_out = lines()
    for x, y in held_out.points:
        assert rows[round(y)][3 * round(x) : 3 * round(x) + 3] == bytes(held_out.colour)
    assert rows[-1][:3] == b"\xff\xff\xff"


def test_every_letter_of_a_drawing_can_be_painted():
    words = [s for s in drawing(CURVE) if isinstance(s, Word)]
    for word in words:
        for letter in word.text.replace(" ", ""):
            alone = png([Word(text=letter, x=100, y=100, anchor="start")])
            assert alone != png([]), letter


@pytest.mark.parametrize("curve", [[], CURVE[:1], CURVE[:2]])
def test_short_curves_are_drawn(curve, tmp_path):
    for name in ("a.svg", "a.png"):
        write_curves(tmp_path / name, curve)
        assert (tmp_path / name).stat().st_size > 500


def test_files_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"neither in \.svg"):
        write_curves(tmp_path / "a.jpg", [])
    with pytest.raises(InvalidRequestError, match="cannot be written"):
        write_curves(tmp_path / "no" / "a.svg", [])
