"""Adapters as JSON. What names a file of this machine is told by its last part."""

from typing import Any

from hyprstream.runtime import Adapter, AdapterInfo, Canary, Coverage, Move
from hyprstream.runtime.bases import served_name


def listed(adapter: Adapter) -> dict[str, Any]:
    """Write a line of the list."""
    return {
        "name": adapter.name,
        "version": adapter.version,
        "moved_at": adapter.moved_at.isoformat(),
        "base": served_name(adapter.base),
        "codec": adapter.codec,
        "size_bytes": adapter.size_bytes,
    }


def info_record(info: AdapterInfo) -> dict[str, Any]:
    """Write what is known of a version."""
    manifest = info.manifest
    return {
        "name": info.ref.name,
        "version": info.version,
        "parent": manifest.parent,
        "tags": list(info.tags),
        "created_at": manifest.created.isoformat(),
        "base": {
            "name": served_name(manifest.base.name),
            "config_sha256": manifest.base.config_sha256,
            "weights_sha256": manifest.base.weights_sha256,
        },
        "kinds": list(manifest.kinds),
        "spec": dict(manifest.spec),
        "codec": manifest.codec,
        "size_bytes": manifest.payload.size_bytes,
        "compression": info.ratio,
        "metrics": dict(manifest.metrics),
        "training": dict(info.training),
        "canary": None if info.canary is None else canary_record(info.canary),
    }


def canary_record(canary: Canary) -> dict[str, Any]:
    """Write which version answers a share of the requests that name an adapter."""
    return {
        "version": canary.version,
        "parent": canary.parent,
        "share": canary.share,
        "since": canary.since.isoformat(),
    }


def stats_record(info: AdapterInfo) -> dict[str, Any]:
    """Write what a version does to each layer."""
    return {
        "name": info.ref.name,
        "version": info.version,
        "modules": [
            {
                "path": module.path,
                "kind": module.kind,
                "rank": module.rank,
                "num_elements": module.num_elements,
                "num_active": module.num_active,
                "norm": module.norm,
            }
            for module in info.modules
        ],
    }


def coverage_record(coverage: Coverage) -> dict[str, Any]:
    """Write how a file's modules and the model's layers fit together."""
    return {
        "complete": coverage.is_complete,
        "layers": len(coverage.modules),
        "missing": list(coverage.missing),
        "unexpected": list(coverage.unexpected),
        "ignored_settings": list(coverage.ignored),
    }


def move_record(move: Move) -> dict[str, Any]:
    """Write a move of a name."""
    return {
        "action": move.action,
        "version": move.version,
        "at": move.at.isoformat(),
        "by": move.note.by,
        "why": move.note.why,
    }
