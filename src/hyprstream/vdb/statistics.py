"""What a grid consists of, counted."""

from dataclasses import dataclass

from hyprstream.vdb.nanovdb.view import GridView


@dataclass(frozen=True, slots=True, kw_only=True)
class GridStatistics:
    """Counts and sizes of one grid in memory.

    Attributes:
        num_voxels: Active voxels.
        num_leaves: Nodes of 8^3 voxels; likewise `num_lowers` (128^3) and `num_uppers` (4096^3).
        leaf_bytes: What the leaves take; likewise `lower_bytes` and `upper_bytes`.
        channel_bytes: What values and other data behind the tree take.
        header_bytes: What is left: headers, the root, padding.
    """

    num_voxels: int
    num_leaves: int
    num_lowers: int
    num_uppers: int
    leaf_bytes: int
    lower_bytes: int
    upper_bytes: int
    channel_bytes: int
    header_bytes: int

    @property
    def total_bytes(self) -> int:
        """Length of the grid."""
        nodes = self.leaf_bytes + self.lower_bytes + self.upper_bytes
        return nodes + self.channel_bytes + self.header_bytes

    @property
    def leaf_density(self) -> float:
        """Share of the voxels of leaves that are active; 0 without leaves."""
        return self.num_voxels / (512 * self.num_leaves) if self.num_leaves else 0.0


def statistics(view: GridView) -> GridStatistics:
    """Count what a grid consists of."""
    nodes = view.leaves.nbytes + view.lowers.nbytes + view.uppers.nbytes
    channels = sum(channel.nbytes for channel in view.channels.values())
    return GridStatistics(
        num_voxels=view.num_voxels,
        num_leaves=len(view.leaves),
        num_lowers=len(view.lowers),
        num_uppers=len(view.uppers),
        leaf_bytes=view.leaves.nbytes,
        lower_bytes=view.lowers.nbytes,
        upper_bytes=view.uppers.nbytes,
        channel_bytes=channels,
        header_bytes=len(view.buffer) - nodes - channels,
    )
