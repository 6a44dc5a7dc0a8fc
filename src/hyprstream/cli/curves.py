"""Draws the losses of a training as a picture: SVG, or PNG with letters of its own.

One layout, two painters. What is drawn are lines and short words, for which no library of
pictures is needed.
"""

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hyprstream.cli.session import Point
from hyprstream.errors import InvalidRequestError

WIDTH, HEIGHT = 720, 420  # pixels

Colour = tuple[int, int, int]

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 40
_BLACK, _GREY = (40, 40, 40), (215, 215, 215)
_BLUE, _RED = (31, 95, 170), (200, 60, 40)
_NUM_TICKS = 5
_SCALE = 2  # pixels of a dot of a letter
_GLYPH_WIDTH, _GLYPH_HEIGHT = 3, 5

# Rows of three dots each, from the top; what the words and numbers of a drawing need.
_GLYPHS: Mapping[str, tuple[int, ...]] = {
    "0": (7, 5, 5, 5, 7), "1": (2, 6, 2, 2, 7), "2": (7, 1, 7, 4, 7), "3": (7, 1, 7, 1, 7),
    "4": (5, 5, 7, 1, 1), "5": (7, 4, 7, 1, 7), "6": (7, 4, 7, 5, 7), "7": (7, 1, 2, 2, 2),
    "8": (7, 5, 7, 5, 7), "9": (7, 5, 7, 1, 7), ".": (0, 0, 0, 0, 2), "-": (0, 0, 7, 0, 0),
    "+": (0, 2, 7, 2, 0),
    "a": (0, 3, 5, 5, 3), "d": (1, 1, 3, 5, 3), "e": (2, 5, 7, 4, 3), "g": (3, 5, 3, 1, 6),
    "h": (4, 4, 6, 5, 5), "i": (2, 0, 2, 2, 2), "l": (6, 2, 2, 2, 7), "n": (0, 6, 5, 5, 5),
    "o": (0, 2, 5, 5, 2), "p": (0, 6, 5, 6, 4), "r": (0, 3, 4, 4, 4), "s": (0, 3, 6, 3, 6),
    "t": (2, 7, 2, 2, 1), "u": (0, 5, 5, 5, 3), "v": (0, 5, 5, 5, 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points that are joined, in pixels from the upper left corner."""

    points: tuple[tuple[float, float], ...]
    colour: Colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word at a place; `anchor` says which end of it is there."""

    text: str
    x: float
    y: float
    anchor: str
    colour: Colour = _BLACK


def write_curves(file: Path, curve: Sequence[Point], *, axis: str = "step") -> None:
    """Draw the curve of a run; the file's ending says how.

    Args:
        file: The picture.
        curve: Points with their losses.
        axis: What the points are counted in.

    Raises:
        InvalidRequestError: The ending is another one, or the file cannot be written.
    """
    shapes = drawing(curve, axis)
    if file.suffix == ".svg":
        data = svg(shapes).encode()
    elif file.suffix == ".png":
        data = png(shapes)
    else:
        raise InvalidRequestError(
            f"{file} ends neither in .svg nor in .png", hint="Say by the ending what to draw."
        )
    try:
        file.write_bytes(data)
    except OSError as error:
        raise InvalidRequestError(
            f"{file} cannot be written: {error.strerror}", hint="Choose another file."
        ) from error


def drawing(curve: Sequence[Point], axis: str = "step") -> list[Line | Word]:
    """Lay out axes and curves: the losses of steps, and those of held-out samples."""
    training = [(p.step, p.loss) for p in curve if p.loss is not None]
    held_out = [(p.step, p.held_out_loss) for p in curve if p.held_out_loss is not None]
    losses = [loss for _, loss in (*training, *held_out) if math.isfinite(loss)]
    low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    last = max((point.step for point in curve), default=0) or 1

    def place(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * step / last
        y = _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - loss) / (high - low)
        return x, y

    shapes: list[Line | Word] = []
    for i in range(_NUM_TICKS + 1):
        loss = low + (high - low) * i / _NUM_TICKS
        x, y = place(0, loss)
        shapes.append(Line(points=((x, y), (WIDTH - _RIGHT, y)), colour=_GREY))
        shapes.append(Word(text=f"{loss:.3g}", x=x - 8, y=y + 5, anchor="end"))
    for step in sorted({round(last * i / _NUM_TICKS) for i in range(_NUM_TICKS + 1)}):
        x, y = place(step, low)
        shapes.append(Line(points=((x, y), (x, y + 5)), colour=_BLACK))
        shapes.append(Word(text=str(step), x=x, y=y + 20, anchor="middle"))
    shapes.append(Word(text=axis, x=WIDTH - _RIGHT, y=HEIGHT - 4, anchor="end"))
    for found, colour, name, x in (
        (training, _BLUE, "training loss", _LEFT),
        (held_out, _RED, "held-out loss", _LEFT + 200),
    ):
        places = tuple(place(step, loss) for step, loss in found if math.isfinite(loss))
        shapes.append(Line(points=places, colour=colour))
        shapes.append(Word(text=name, x=x, y=22, anchor="start", colour=colour))
    return shapes


def svg(shapes: Sequence[Line | Word]) -> str:
    """Write shapes as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for shape in shapes:
        colour = "#{:02x}{:02x}{:02x}".format(*shape.colour)
        if isinstance(shape, Line):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            )
        else:
            parts.append(
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.anchor}" '
                f'fill="{colour}">{escape(shape.text)}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


def png(shapes: Sequence[Line | Word]) -> bytes:
    """Paint shapes as PNG."""
    canvas = _Canvas()
    for shape in shapes:
        if isinstance(shape, Line):
            for begin, end in zip(shape.points, shape.points[1:], strict=False):
                canvas.line(begin, end, shape.colour)
        else:
            canvas.word(shape)
    return canvas.encoded()


class _Canvas:
    """Pixels, white at first."""

    def __init__(self) -> None:
        self._rows = [bytearray(b"\xff" * (3 * WIDTH)) for _ in range(HEIGHT)]

    def line(self, begin: tuple[float, float], end: tuple[float, float], colour: Colour) -> None:
        """Draw a line, a dot for each pixel of its longer side."""
        (x0, y0), (x1, y1) = begin, end
        count = max(1, round(max(abs(x1 - x0), abs(y1 - y0))))
        for i in range(count + 1):
            x, y = x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count
            self._dot(round(x), round(y), colour)

    def word(self, word: Word) -> None:
        """Write a word; `y` is where its letters stand."""
        advance = _SCALE * (_GLYPH_WIDTH + 1)
        width = advance * len(word.text)
        shift = {"start": 0, "middle": width // 2, "end": width}[word.anchor]
        left, top = round(word.x) - shift, round(word.y) - _SCALE * _GLYPH_HEIGHT
        for number, letter in enumerate(word.text):
            for row, bits in enumerate(_GLYPHS.get(letter, ())):
                for column in range(_GLYPH_WIDTH):
                    if bits >> (_GLYPH_WIDTH - 1 - column) & 1:
                        x = left + number * advance + column * _SCALE
                        self._square(x, top + row * _SCALE, word.colour)

    def encoded(self) -> bytes:
        """Return the file."""
        rows = b"".join(b"\0" + row for row in self._rows)  # no filter
        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)  # 8 bits, RGB
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)

    def _square(self, x: int, y: int, colour: Colour) -> None:
        for across in range(_SCALE):
            for down in range(_SCALE):
                self._dot(x + across, y + down, colour)

    def _dot(self, x: int, y: int, colour: Colour) -> None:
        if 0 <= x < WIDTH and 0 <= y < HEIGHT:
            self._rows[y][3 * x : 3 * x + 3] = bytes(colour)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
