"""Sizes and offsets are those of PNanoVDB.h, the format's C header, as warp ships it."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from hyprstream.vdb.nanovdb import structures as s


def _offset(structure, field: str) -> int:
    return structure.fields[field][1]


@pytest.fixture(scope="module")
def header() -> str:
    found = find_spec("warp")
    if found is None or found.origin is None:
        pytest.skip("warp is not installed: pip install warp-lang")
    return (Path(found.origin).parent / "native/nanovdb/PNanoVDB.h").read_text()


@pytest.mark.parametrize(
    ("prefix", "structure"),
    [
        ("GRID", s.GRID),
        ("TREE", s.TREE),
        ("ROOT", s.ROOT_FLOAT),
        ("ROOT", s.ROOT_INDEX),
        ("ROOT_TILE", s.ROOT_TILE),
        ("UPPER", s.UPPER),
        ("LOWER", s.LOWER),
        ("LEAF", s.LEAF_FLOAT),
        ("LEAF", s.LEAF_INDEX),
        ("GRIDBLINDMETADATA", s.BLIND_METADATA),
    ],
)
def test_fields_lie_where_the_header_says(header, prefix, structure):
    offsets = dict(re.findall(rf"#define PNANOVDB_{prefix}_OFF_([A-Z0-9_]+) (\d+)", header))
    assert offsets
    compared = 0
    for name, (_, offset, *_) in structure.fields.items():
        if name.upper() in offsets:
            assert offset == int(offsets[name.upper()]), name
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("layout", [s.FLOAT_LAYOUT, s.INDEX_LAYOUT])
def test_sizes_are_those_of_the_header(header, layout):
    names = re.search(r"struct pnanovdb_grid_type_constants_t\n{(.*?)};", header, re.DOTALL)
    rows = re.search(r"_constants\[PNANOVDB_GRID_TYPE_END\] =\n{(.*?)\n};", header, re.DOTALL)
    assert names is not None
    assert rows is not None
    row = rows[1].strip().splitlines()[layout.grid_type]
    keys = re.findall(r"pnanovdb_uint32_t (\w+);", names[1])
    constants = dict(zip(keys, map(int, re.findall(r"\d+", row)), strict=True))
    assert constants["root_size"] == layout.root.itemsize
    assert constants["root_tile_size"] == s.ROOT_TILE.itemsize
    assert constants["upper_size"] == s.UPPER.itemsize
    assert constants["lower_size"] == s.LOWER.itemsize
    assert constants["leaf_size"] == layout.leaf.itemsize
    assert constants["upper_off_table"] == _offset(s.UPPER, "table")
    assert constants["lower_off_table"] == _offset(s.LOWER, "table")
    if layout is s.FLOAT_LAYOUT:
        assert constants["leaf_off_table"] == _offset(s.LEAF_FLOAT, "table")
        assert constants["leaf_off_min"] == _offset(s.LEAF_FLOAT, "statistics")
        assert constants["root_off_background"] == _offset(s.ROOT_FLOAT, "background")
    assert f"#define PNANOVDB_GRID_SIZE {s.GRID.itemsize}\n" in header
    assert f"#define PNANOVDB_TREE_SIZE {s.TREE.itemsize}\n" in header
    assert f"#define PNANOVDB_GRIDBLINDMETADATA_SIZE {s.BLIND_METADATA.itemsize}\n" in header
