"""Formats of adapters: one file each, whose name is what users call it.

A format's file has

    IS_FOLDER                       it is a folder, not a file
    recognizes(path) -> bool        by content; cheap, and never fails on strange files
    read(path, host, options) -> Imported
    write(place, outgoing) -> None  into a place that is empty
"""
