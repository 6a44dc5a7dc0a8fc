"""What the stored tensors of an adapter are parts of, by their names. NumPy only."""

from collections.abc import Mapping

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.tensors import SparseTensor

# The factors of a head of 262,144 entries at rank 1024. More would only come from a file
# that claims a shape which its few values do not fill.
_MAX_ELEMENTS = 2**28

Parts = dict[str, tuple[str, dict[str, SparseTensor]]]


def by_path(tensors: Mapping[str, SparseTensor]) -> Parts:
    """Sort tensors by the layer that they change: path -> kind and its tensors by name.

    Raises:
        InvalidAdapterError: A name is not PATH/KIND/TENSOR, or two kinds change one layer.
    """
    found: Parts = {}
    for full_name, tensor in tensors.items():
        path, kind, name = split_name(full_name)
        if found.setdefault(path, (kind, {}))[0] != kind:
            raise InvalidAdapterError(
                f"an adapter changes {path} as {found[path][0]} and as {kind}",
                hint="The file is damaged, or no adapter.",
            )
        found[path][1][name] = tensor
    return found


def split_name(full_name: str) -> tuple[str, str, str]:
    """Take a name apart into path, kind and tensor.

    Raises:
        InvalidAdapterError: It is not made of these.
    """
    parts = full_name.split("/")
    if len(parts) != 3 or not all(parts):
        raise InvalidAdapterError(
            f"{full_name!r} names no part of an adapter",
            hint="Names are PATH/KIND/TENSOR, as in layers.0.self_attn.q_proj/low_rank/a.",
        )
    return parts[0], parts[1], parts[2]


def check_size(tensor: SparseTensor) -> None:
    """Make sure that a tensor may be made whole.

    Raises:
        InvalidAdapterError: It would be larger than any adapter's.
    """
    if tensor.size > _MAX_ELEMENTS:
        raise InvalidAdapterError(
            f"a tensor of shape {tensor.shape} is too large for an adapter",
            hint="The file is damaged, or no adapter.",
        )
