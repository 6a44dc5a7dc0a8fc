"""A reader of `neural` streams, written after docs/design/codec.md and after nothing else.

Slow, trusting, without NumPy; it shares the tables with the program, whose hash the page tells.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from math import prod

import zstandard

from hyprstream.vdb.entropy.tables import tables


def varints(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value = shift = 0


def signed(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value + 1) // 2


class Bits:
    def __init__(self, data: bytes) -> None:
        self._bits = [byte >> i & 1 for byte in data for i in range(7, -1, -1)]

    def vector(self, length: int, num_bits: int) -> list[int]:
        values = [0] * length
        for place in range(num_bits):
            for i in range(length):
                values[i] |= self._bits.pop(0) << place
        return values


class Coder:
    """The range coder."""

    def __init__(self, states: list[int], words: list[int]) -> None:
        self._states, self._words, self._count = states, words, 0
        self._frequencies = tables().frequencies.astype(int).tolist()

    def symbol(self, table: int) -> int:
        lane = self._count % len(self._states)
        self._count += 1
        state = self._states[lane]
        start, symbol = 0, 0
        while start + self._frequencies[table][symbol] <= state % 4096:
            start += self._frequencies[table][symbol]
            symbol += 1
        state = self._frequencies[table][symbol] * (state // 4096) + state % 4096 - start
        if state < 65536:
            state = 65536 * state + self._words.pop(0)
        self._states[lane] = state
        return symbol

    def finish(self) -> None:
        assert not self._words
        assert all(state == 65536 for state in self._states)


class Block:
    """Groups and counts of one block."""

    def __init__(self, classes: list[int], side: bytes, parts: tuple[list, list, bytes]) -> None:
        self._classes, self._side = classes, varints(side)
        self._coder, self._bits = Coder(*parts[:2]), Bits(parts[2])

    def read(self, lengths: list[int], num_runs: int) -> tuple[list[list[int]], list[list[int]]]:
        dense = [i for i, number in enumerate(self._classes) if 0 < number < 219]
        sparse = sorted({number for number in self._classes if number > 219})
        described = []
        for _ in sparse:
            count = next(self._side)
            described += [(count, next(self._side), next(self._side)) for _ in range(2)]
        described += [(next(self._side), next(self._side), next(self._side))
                      for _ in range(num_runs)]  # fmt: skip
        num_escapes = next(self._side)
        escapes = [signed(next(self._side)) for _ in range(num_escapes)]

        def symbols(length: int, table: int, zero: int) -> list[int]:
            found = [self._coder.symbol(table) for _ in range(length)]
            return [escapes.pop(0) if s == 255 else s - zero for s in found]

        raw = {}
        for i in dense:
            place, family = divmod(self._classes[i] - 1, 2)
            shift = max(0, -(-(place - 24) // 4))
            raw[i] = symbols(lengths[i], 25 * family + place - 4 * shift, 128), shift
        raw_counts = [(symbols(n, 50 + table, 0), shift) for n, table, shift in described]
        self._coder.finish()
        groups = [[0] * length for length in lengths]
        for i, (values, shift) in raw.items():
            low = self._bits.vector(len(values), shift)
            groups[i] = [
                (v << shift) + bits - (1 << shift) // 2 for v, bits in zip(values, low, strict=True)
            ]
        for k, number in enumerate(sparse):
            zeros, sizes = (self._counts(*raw_counts[2 * k + j]) for j in range(2))
            signs = self._bits.vector(len(zeros), 1)
            chosen = [i for i, other in enumerate(self._classes) if other == number]
            together = [0] * sum(lengths[i] for i in chosen)
            place = -1
            for gap, size, sign in zip(zeros, sizes, signs, strict=True):
                place += gap + 1
                together[place] = -(size + 1) if sign else size + 1
            for i in chosen:
                groups[i], together = together[: lengths[i]], together[lengths[i] :]
        return groups, [self._counts(*raw) for raw in raw_counts[2 * len(sparse) :]]

    def _counts(self, values: list[int], shift: int) -> list[int]:
        low = self._bits.vector(len(values), shift)
        return [(v << shift) + bits for v, bits in zip(values, low, strict=True)]


def seeded(seed: int, size: int, active: int) -> list[int]:
    def number(i: int) -> int:
        z = (seed + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    return sorted(sorted(range(size), key=lambda i: (number(i), i))[:active])


def unpack(data: bytes) -> tuple[dict, list[int], list[Block], bool]:
    """Return the table, the codes of scales, the blocks, and whether it is an update."""
    magic, version, is_update, _, checksum = struct.unpack_from("<4sBBHI", data)
    assert (magic, version, checksum) == (b"HYRD", 1, zlib.crc32(data[12:]))
    rest = data[28:] if is_update else data[12:]
    size = next(varints(rest))
    start = next(i for i, byte in enumerate(rest) if byte < 128) + 1
    head = zstandard.ZstdDecompressor().decompress(rest[start : start + size])
    body = rest[start + size :]
    stream = varints(head)
    num_table, num_codes, num_blocks = (next(stream) for _ in range(3))
    sizes = [[next(stream) for _ in range(5)] for _ in range(num_blocks)]
    ends = [i + 1 for i, byte in enumerate(head) if byte < 128]
    head = head[ends[3 + 5 * num_blocks - 1] :]
    table, head = json.loads(head[:num_table]), head[num_table:]
    codes, head = [signed(v) for v in varints(head[:num_codes])], head[num_codes:]
    blocks = []
    for num_classes, num_side, num_states, num_words, num_bits in sizes:
        classes, side = list(head[:num_classes]), head[num_classes : num_classes + num_side]
        head = head[num_classes + num_side :]
        states = list(struct.unpack_from(f"<{num_states}I", body))
        words = list(struct.unpack_from(f"<{num_words}H", body, 4 * num_states))
        bits = body[4 * num_states + 2 * num_words :][:num_bits]
        body = body[4 * num_states + 2 * num_words + num_bits :]
        blocks.append(Block(classes, side, (states, words, bits)))
    assert not body
    return table, codes, blocks, bool(is_update)


Part = dict  # of one part: name, shapes, kept, masks, codes, and its groups of integers


def masks_of(described: list[dict], blocks: list[Block]) -> Iterator[list[int] | None]:
    """Yield the active elements of each tensor, None for all."""
    notes = [
        (note, size)
        for part in described
        for note, size in zip(part.get("masks", [None, None]), sizes_of(part), strict=False)
    ]
    num_runs = sum(1 for note, _ in notes if note and "runs" in note)
    runs = iter(blocks[0].read([], 2 * num_runs)[1]) if num_runs else iter([])
    for note, size in notes:
        if note is None:
            yield None
        elif "seed" in note:
            yield seeded(note["seed"], size, note["active"])
        else:
            active: list[int] = []
            place = 0
            for k, (gap, run) in enumerate(zip(next(runs), next(runs), strict=True)):
                place += (gap + (k > 0)) * note["runs"]
                length = (run + 1) * note["runs"]
                active += range(place, place + length)
                place += length
            yield active


def sizes_of(part: dict) -> list[int]:
    if "shape" in part:
        return [prod(part["shape"])]
    inputs, rank, outputs = part["pair"]
    return [inputs * rank, rank * outputs]


def lengths_of(part: Part) -> list[int]:
    if "shape" in part:
        shape, mask = part["shape"], part["masks"][0]
        if mask is not None:
            return [len(mask)]
        is_wide = len(shape) == 2 and shape[0] > 0 and shape[1] >= 64
        return [shape[1]] * shape[0] if is_wide else [prod(shape)]
    inputs, rank, outputs = part["pair"]
    lengths = []
    for side, (width, mask) in enumerate(zip((inputs, outputs), part["masks"], strict=True)):
        for k in range(part["kept"]):
            of_k = [] if mask is None else [e for e in mask if (e % rank if side == 0
                                                               else e // outputs) == k]  # fmt: skip
            lengths.append(width if mask is None else len(of_k))
    return lengths


def prediction(width: int, code: int, step: int) -> int:
    eight_logs = (width**8).bit_length() - 1
    place = ((step - 2 * code) // 64 - eight_logs + 2) // 4 + 12
    return 1 + 2 * min(108, max(0, place))


def read_key(data: bytes) -> tuple[int, list[Part]]:
    table, numbers, blocks, is_update = unpack(data)
    assert not is_update
    step, grain = table["step"], table["grain"]
    masks = masks_of(table["parts"], blocks)
    parts, lengths, predicted = [], [], []
    for described in table["parts"]:
        part = dict(described) | {"masks": [next(masks) for _ in sizes_of(described)], "codes": []}
        code = step // grain
        for _ in range(part.get("kept", 1)):
            code += numbers.pop(0)
            part["codes"].append(code * grain)
        part["num_groups"] = len(lengths_of(part))
        lengths += lengths_of(part)
        if "pair" in part and part["masks"] == [None, None]:
            widths = part["pair"][0], part["pair"][2]
            predicted += [prediction(width, c, step) for width in widths for c in part["codes"]]
        else:
            predicted += [0] * part["num_groups"]
        parts.append(part)
    block = blocks[-1]
    block._classes = [(c + p) % 256 for c, p in zip(block._classes, predicted, strict=True)]
    groups = iter(block.read(lengths, 0)[0])
    for part in parts:
        part["groups"] = [next(groups) for _ in range(part["num_groups"])]
    return step, parts


def read_update(data: bytes, step: int, parents: list[Part]) -> list[Part]:
    table, numbers, blocks, is_update = unpack(data)
    assert is_update
    grain, parts = table.get("grain", 1), []
    for part, more in zip(parents, table.get("more", [0] * len(parents)), strict=True):
        codes, code = list(part["codes"]), step // grain
        for _ in range(more):
            code += numbers.pop(0)
            codes.append(code * grain)
        changed = dict(part) | {"codes": codes}
        if more:
            changed["kept"] += more
            half = len(part["groups"]) // 2
            inputs, _, outputs = part["pair"]
            new = [[0] * inputs] * more, [[0] * outputs] * more
            changed["groups"] = [
                *part["groups"][:half], *new[0], *part["groups"][half:], *new[1]
            ]  # fmt: skip
        parts.append(changed)
    lengths = [length for part in parts for length in lengths_of(part)]
    groups = iter(blocks[0].read(lengths, 0)[0])
    for part in parts:
        part["groups"] = [
            [a + b for a, b in zip(group, next(groups), strict=True)] for group in part["groups"]
        ]
    return parts
