"""Kernels that read and write grids. Warp compiles them from this file."""

import warp as wp


@wp.kernel
def look_up_index(
    volume: wp.uint64, voxels: wp.array(dtype=wp.vec3i), found: wp.array(dtype=wp.int32)
):
    """The place of each voxel's value in the channel, less one; -1 where none is active."""
    i = wp.tid()
    at = voxels[i]
    found[i] = wp.volume_lookup_index(volume, at[0], at[1], at[2])


@wp.kernel
def look_up_float(
    volume: wp.uint64, voxels: wp.array(dtype=wp.vec3i), found: wp.array(dtype=wp.float32)
):
    """The value of each voxel of a float grid."""
    i = wp.tid()
    at = voxels[i]
    found[i] = wp.volume_lookup_f(volume, at[0], at[1], at[2])


@wp.kernel
def double_values(
    volume: wp.uint64, voxels: wp.array(dtype=wp.vec3i), values: wp.array(dtype=wp.float32)
):
    """Double the value of each voxel where it lies."""
    i = wp.tid()
    at = voxels[i]
    place = wp.volume_lookup_index(volume, at[0], at[1], at[2]) + 1
    values[place] = 2.0 * values[place]
