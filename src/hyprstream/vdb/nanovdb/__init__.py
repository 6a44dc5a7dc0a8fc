"""The NanoVDB format, versions 32.3 to 32.x: grids in one relocatable buffer, and their files.

Two grid types are written: `ValueOnIndex`, which numbers its active voxels and keeps values in
channels behind the tree, and `Float`, which keeps values in the leaves. What each field means:
openvdb/nanovdb/nanovdb/NanoVDB.h and PNanoVDB.h of https://github.com/AcademySoftwareFoundation.
"""
