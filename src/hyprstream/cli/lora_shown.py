"""Adapters as people and programs read them: tables, drawings, plain records."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import (
    AdapterDiff,
    AdapterInfo,
    Canary,
    Coverage,
    GridStatistics,
    ModuleChange,
    ModuleSummary,
)
from hyprstream.cli.text import in_bytes, in_millions

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_BLOCKS = "▁▂▃▄▅▆▇█"
_NOTHING, _ZERO = " ", "·"

REACHED: Mapping[str, Mapping[float, int]] = {
    "low_rank": {0.9: 78, 0.95: 69, 0.99: 39},
    "sparse": {0.9: 93, 0.95: 85, 0.99: 67},
}
"""Per cent of a dense adapter's gain that sparse ones reached, by kind and the share of elements
that stay zero: `python -m benchmarks sparsity`, docs/reference/adapters.md."""


def warn_of_price(output: Output, kind: str, sparsity: float) -> None:
    """Say what an adapter that is as sparse as this has to do without."""
    known = [limit for limit in REACHED.get(kind, {}) if sparsity >= limit]
    if known:
        reached = REACHED[kind][max(known)]
        output.warn(
            f"at sparsity {max(known):.0%}, {kind} adapters reached {reached}% of what a dense "
            "one of rank 16 gained, equally trained (stories260K; reference/adapters.md)"
        )


def say_coverage(output: Output, coverage: Coverage) -> None:
    """Say how the modules of a file and the layers of a model fit together."""
    output.done(f"{len(coverage.modules)} layers are changed")
    for names, what in (
        (coverage.missing, "layers that the settings mean are not in the file"),
        (coverage.unexpected, "modules of the file have no layer and were left out"),
        (coverage.ignored, "settings of the file are not known and were left out"),
    ):
        if names:
            more = ", ..." if len(names) > 3 else ""
            output.warn(f"{len(names)} {what}: {', '.join(names[:3])}{more}")


def info_record(info: AdapterInfo, stats: GridStatistics | None) -> dict[str, object]:
    """Return all that is known of a version, as plain data."""
    manifest = info.manifest
    record: dict[str, object] = {
        "name": info.ref.name,
        "version": info.version,
        "tags": info.tags,
        "base_model": {
            "name": manifest.base.name,
            "config_sha256": manifest.base.config_sha256,
            "weights_sha256": manifest.base.weights_sha256,
        },
        "spec": manifest.spec,
        "training": info.training,
        "codec": manifest.codec,
        "size_bytes": manifest.payload.size_bytes,
        "ratio_float32": info.ratio,
        "parent": manifest.parent,
        "needs_parent": manifest.needs_parent,
        "metrics": manifest.metrics,
        "provenance": manifest.provenance,
        "canary": _canary_record(info.canary),
        "created": manifest.created.isoformat(timespec="seconds"),
        "modules": [
            {
                "path": module.path,
                "kind": module.kind,
                "rank": module.rank,
                "num_active": module.num_active,
                "num_elements": module.num_elements,
                "density": module.density,
                "norm": module.norm,
            }
            for module in info.modules
        ],
    }
    if stats is not None:
        record["grid"] = _stats_record(stats)
    return record


def show_info(
    output: Output,
    info: AdapterInfo,
    stats: GridStatistics | None,
    learning: Mapping[str, Any],
) -> None:
    """Print a version for a person: what it is, then a line for each sort of layer."""
    manifest = info.manifest
    active = sum(module.num_active for module in info.modules)
    elements = sum(module.num_elements for module in info.modules)
    lost = manifest.metrics.get("relative_error")
    shown = {
        "name": info.ref.name,
        "version": info.version,
        "tags": ", ".join(info.tags) or "none",
        "base model": str(manifest.base.fingerprint),
        "spec": _listed({k: v for k, v in manifest.spec.items() if k not in info.training}),
        "training": _listed(info.training) or "as training does by default",
        "learns from": f"traffic: {learning['learn']}; trusted: "
        + (", ".join(learning["trusted"]) or "unrelated text only"),
        "stored as": f"{manifest.codec}, {in_bytes(manifest.payload.size_bytes)}, "
        f"1/{info.ratio:.1f} of float32",
        "error": "none by coding" if lost is None else f"{lost:.3f} of what it adds",
        "parent": _parent(manifest.parent, needed=manifest.needs_parent),
        "created": f"{manifest.created.astimezone():%Y-%m-%d %H:%M:%S}",
        "elements": f"{in_millions(active)} active of {in_millions(elements)} "
        f"on {len(info.modules)} layers",
    }
    if info.canary is not None:
        shown["canary"] = (
            f"{info.canary.version[:12]} answers {info.canary.share:.3g} of the requests since "
            f"{info.canary.since.astimezone():%Y-%m-%d %H:%M:%S}"
        )
    if stats is not None:
        shown["grid"] = (
            f"{stats.num_voxels:,} voxels in {stats.num_leaves:,} leaves "
            f"({stats.leaf_density:.1%} of theirs), {stats.num_lowers:,} lower and "
            f"{stats.num_uppers:,} upper nodes, {in_bytes(stats.total_bytes)}"
        )
    output.record({}, Format.TABLE, shown=shown)
    groups = _by_module(info.modules)
    output.table(
        [],
        Format.TABLE,
        identifier="module",
        shown=[_shown_group(name, list(layers.values())) for name, layers in groups.items()],
    )


def show_diff(output: Output, diff: AdapterDiff) -> None:
    """Print how two versions differ for a person."""
    shown = {name: f"{_plainly(a)} -> {_plainly(b)}" for name, (a, b) in diff.spec.items()}
    output.record({}, Format.TABLE, shown=shown or {"spec": "the same"})
    changed = [module for module in diff.modules if module.change != 0]
    same = len(diff.modules) - len(changed)
    output.table(
        [],
        Format.TABLE,
        identifier="path",
        shown=[
            {
                "path": module.path,
                "before": f"{module.before:.4g}",
                "after": f"{module.after:.4g}",
                "change": _change(module),
            }
            for module in changed
        ],
    )
    if same:
        output.done(f"{same} layers are the same")


def diff_record(diff: AdapterDiff) -> dict[str, object]:
    """Return how two versions differ, as plain data."""
    return {
        "first": diff.first,
        "second": diff.second,
        "spec": {name: {"first": a, "second": b} for name, (a, b) in diff.spec.items()},
        "modules": [
            {
                "path": module.path,
                "norm_before": module.before,
                "norm_after": module.after,
                "norm_of_change": module.change,
                "relative_change": module.relative,
            }
            for module in diff.modules
        ],
    }


def plot(modules: Sequence[ModuleSummary]) -> str:
    """Draw norm and density, a row for each sort of layer and a column for each layer.

    A block is an eighth of the largest norm, or of 1 for a density; a dot is zero, a blank a
    layer that is left alone.
    """
    groups = _by_module(modules)
    num_layers = 1 + max((number for layers in groups.values() for number in layers), default=0)
    largest = max((module.norm for module in modules), default=0.0)
    norms = {name: {n: m.norm for n, m in layers.items()} for name, layers in groups.items()}
    densities = {name: {n: m.density for n, m in layers.items()} for name, layers in groups.items()}
    return "".join(
        [
            f"norm of what is added, layers 0 to {num_layers - 1}, up to {largest:.3g}\n",
            *_rows(norms, num_layers, largest),
            f"density, layers 0 to {num_layers - 1}, up to 1\n",
            *_rows(densities, num_layers, 1.0),
        ]
    )


def _canary_record(canary: Canary | None) -> dict[str, object] | None:
    if canary is None:
        return None
    return {
        "version": canary.version,
        "parent": canary.parent,
        "share": canary.share,
        "since": canary.since.isoformat(timespec="seconds"),
    }


def _rows(values: Mapping[str, Mapping[int, float]], num_layers: int, largest: float) -> list[str]:
    width = max((len(name) for name in values), default=0)
    return [
        f"  {name:{width}}  {''.join(_block(row.get(n), largest) for n in range(num_layers))}\n"
        for name, row in values.items()
    ]


def _block(value: float | None, largest: float) -> str:
    if value is None:
        return _NOTHING
    if value == 0:
        return _ZERO
    last = len(_BLOCKS) - 1
    return _BLOCKS[min(last, int(value / largest * len(_BLOCKS)))]


def _by_module(modules: Sequence[ModuleSummary]) -> dict[str, dict[int, ModuleSummary]]:
    """Sort layers by what they are called within a block: name -> number of the block -> layer."""
    groups: dict[str, dict[int, ModuleSummary]] = {}
    for module in modules:
        match = _LAYER.fullmatch(module.path)
        number, name = (int(match[1]), match[2]) if match else (0, module.path)
        groups.setdefault(name, {})[number] = module
    return groups


def _shown_group(name: str, modules: Sequence[ModuleSummary]) -> dict[str, str]:
    norms = [module.norm for module in modules]
    ranks = sorted({module.rank for module in modules})
    elements = sum(module.num_elements for module in modules)
    density = sum(module.num_active for module in modules) / elements if elements else 1.0
    return {
        "module": name,
        "kind": ", ".join(sorted({module.kind for module in modules})),
        "layers": str(len(modules)),
        "rank": _range([f"{ranks[0]}", f"{ranks[-1]}"]) if ranks != [0] else "none",
        "density": f"{density:.2%}",
        "norm": _range([f"{min(norms):.4g}", f"{max(norms):.4g}"]),
    }


def _stats_record(stats: GridStatistics) -> dict[str, object]:
    return {
        "num_voxels": stats.num_voxels,
        "num_leaves": stats.num_leaves,
        "num_lowers": stats.num_lowers,
        "num_uppers": stats.num_uppers,
        "leaf_density": stats.leaf_density,
        "leaf_bytes": stats.leaf_bytes,
        "lower_bytes": stats.lower_bytes,
        "upper_bytes": stats.upper_bytes,
        "channel_bytes": stats.channel_bytes,
        "header_bytes": stats.header_bytes,
        "total_bytes": stats.total_bytes,
    }


def _range(ends: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def _parent(parent: str | None, *, needed: bool) -> str:
    if parent is None:
        return "none"
    return f"{parent[:12]}, of which this is an update" if needed else parent[:12]


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_plainly(value)}" for key, value in values.items() if value != ())


def _plainly(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _change(module: ModuleChange) -> str:
    if module.relative is not None:
        return f"{module.relative:.2%}"
    return "of another kind" if module.change is None else "new"
