"""Native code for the few places where Python and torch are what costs; all of it optional.

The C++ files are compiled when the package is installed, if there is a C++ compiler. Every
kernel has an equal in torch, which the tests compare it with and which runs without it.
"""
