"""Quantised adapters to streams, in the format of docs/design/codec.md.

A key frame stands alone; an update holds the differences from a parent's integers, at the
parent's scales.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hyprstream.errors import IncompatibleAdapterError
from hyprstream.vdb.entropy import groups
from hyprstream.vdb.entropy.classes import Integers
from hyprstream.vdb.entropy.groups import Coded
from hyprstream.vdb.entropy.masks import to_runs
from hyprstream.vdb.learned import frame
from hyprstream.vdb.learned.layout import Layout, to_json
from hyprstream.vdb.learned.quantised import Pair, Quantised, Single
from hyprstream.vdb.learned.side import codes_of, predicted_classes, write_codes


def write_key(quantised: Quantised) -> bytes:
    """Write an adapter that stands alone."""
    layouts = _layouts(quantised)
    step = quantised.step_code
    codes = [codes_of(part) for part in quantised.parts.values()]
    blocks, described = _masks(layouts)
    predicted = predicted_classes(layouts, codes, step)
    coded = groups.encode(_vectors(layouts, list(quantised.parts.values())), [], predicted)
    grain, numbers = write_codes(codes, step)
    return frame.write(
        frame.Frame(
            depth=0,
            parent=b"",
            table={"step": step, "grain": grain, "parts": described},
            codes=numbers,
            blocks=[*blocks, replace(coded, classes=coded.classes - predicted)],
        )
    )


def write_update(quantised: Quantised, parent: Quantised) -> bytes:
    """Write an adapter by its difference from what was read of an earlier version.

    Raises:
        IncompatibleAdapterError: The adapter has other parts, masks or scales than its
            parent. Pairs may have more components.
    """
    if list(parent.parts) != list(quantised.parts):
        raise _another_form("it changes other layers, or in another order")
    layouts = _layouts(quantised)
    parts = [_difference(part, parent.parts[name], name) for name, part in quantised.parts.items()]
    codes = [
        codes_of(part)[codes_of(before).size :]
        for part, before in zip(quantised.parts.values(), parent.parts.values(), strict=True)
    ]
    more = [len(part) for part in codes]
    grain, numbers = write_codes(codes, parent.step_code)
    table: Mapping[str, Any] = {"grain": grain, "more": more} if any(more) else {}
    return frame.write(
        frame.Frame(
            depth=parent.depth + 1,
            parent=parent.identity,
            table=table,
            codes=numbers,
            blocks=[groups.encode(_vectors(layouts, parts), [])],
        )
    )


def _layouts(quantised: Quantised) -> list[Layout]:
    return [Layout.of(name, part) for name, part in quantised.parts.items()]


def _vectors(layouts: Sequence[Layout], parts: Sequence[Pair | Single]) -> list[Integers]:
    pairs = zip(layouts, parts, strict=True)
    return [vector for layout, part in pairs for vector in layout.groups(part)]


def _masks(layouts: Sequence[Layout]) -> tuple[list[Coded], list[dict[str, Any]]]:
    """Code the masks that have no seed, in a block of their own; describe all layouts."""
    runs = [
        to_runs(mask.indices, size)
        for layout in layouts
        for mask, size in zip(layout.masks, layout.sizes(), strict=True)
        if mask is not None and mask.seed is None
    ]
    divisors = iter([divisor for divisor, _, _ in runs])
    described = [to_json(layout, divisors) for layout in layouts]
    counts = [vector for _, gaps, lengths in runs for vector in (gaps, lengths)]
    return ([groups.encode([], counts)] if counts else []), described


def _difference(part: Pair | Single, before: Pair | Single, name: str) -> Pair | Single:
    if Layout.of(name, part).form() != Layout.of(name, before).form():
        raise _another_form(f"{name} has another shape or other active elements")
    codes, codes_before = codes_of(part), codes_of(before)
    kept = len(codes_before)
    if len(codes) < kept or (codes[:kept] != codes_before).any():
        raise _another_form(f"{name} has other scales")
    if isinstance(part, Single):
        assert isinstance(before, Single)
        return replace(part, values=part.values - before.values)
    assert isinstance(before, Pair)
    p, q = part.p.copy(), part.q.copy()
    p[:kept] -= before.p
    q[:kept] -= before.q
    return replace(part, p=p, q=q)


def _another_form(problem: str) -> IncompatibleAdapterError:
    return IncompatibleAdapterError(
        f"the adapter cannot be told as an update of its parent: {problem}",
        hint="Write it as a key frame, which stands alone.",
    )
