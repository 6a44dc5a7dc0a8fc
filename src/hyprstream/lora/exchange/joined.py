"""Adapters of single projections on a model that computes several of them as one.

Programs that take a Phi 3 apart train q, k and v, or gate and up, each with matrices of its
own. On the layer that joins them this is one product: the A matrices below each other, and
the B matrices along a diagonal.
"""

from collections.abc import Mapping

import torch

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.exchange.host import Host, Rows
from hyprstream.lora.exchange.pairs import Pair


def join(pairs: Mapping[str, Pair], host: Host, origin: object) -> dict[str, Pair]:
    """Put pairs of single projections together; all others stay as they are.

    Args:
        pairs: By path, of layers of the model or of projections within them.
        host: The model.
        origin: What an error message calls the file.

    Raises:
        InvalidAdapterError: A layer is changed as a whole and in parts.
        IncompatibleAdapterError: A projection of the model has another shape.
    """
    joined = host.joined
    found: dict[str, dict[str, Pair]] = {}
    for path, pair in pairs.items():
        layer = joined[path].layer if path in joined else path
        found.setdefault(layer, {})[path] = pair
    result = {}
    for layer, parts in found.items():
        if layer in parts and len(parts) > 1:
            raise InvalidAdapterError(
                f"{origin} changes {layer} as a whole and in parts",
                hint="The adapter is damaged or incomplete.",
            )
        single = parts.get(layer)
        if single is None:
            rows = {path: joined[path] for path in parts}
            single = _one(parts, rows, host.linears[layer], origin)
        result[layer] = single
    return {path: result[path] for path in host.linears if path in result}


def _one(
    parts: Mapping[str, Pair], rows: Mapping[str, Rows], shape: tuple[int, int], origin: object
) -> Pair:
    for path, pair in parts.items():
        wanted = rows[path].stop - rows[path].start, shape[1]
        if pair.shape != wanted:
            raise IncompatibleAdapterError(
                f"{origin} changes a projection of shape {pair.shape} at {path}, "
                f"the model has {wanted} there",
                hint="Use the adapter with the base model that it was trained on.",
            )
    pairs = list(parts.values())
    scale = pairs[0].scale if len({pair.scale for pair in pairs}) == 1 else 1.0
    shares_a = all(torch.equal(pair.a, pairs[0].a) for pair in pairs)
    a = pairs[0].a if shares_a else torch.cat([pair.a for pair in pairs])
    b = a.new_zeros(shape[0], a.shape[0], dtype=_b_dtype(pairs, scale))
    rank = 0
    for path, pair in parts.items():
        up = pair.b if pair.scale == scale else (pair.b.double() * pair.scale).float()
        b[rows[path].start : rows[path].stop, rank : rank + pair.rank] = up
        rank += 0 if shares_a else pair.rank
    return Pair(a, b, scale)


def _b_dtype(pairs: list[Pair], scale: float) -> torch.dtype:
    """Return the dtype in which nothing is lost but what folding a scale rounds."""
    dtype = pairs[0].b.dtype
    for pair in pairs:
        dtype = torch.promote_types(dtype, pair.b.dtype)
        if pair.scale != scale:
            dtype = torch.promote_types(dtype, torch.float32)
    return dtype
