"""Measurements side by side with peers. Never imported by tests.

`python -m benchmarks` runs them all; results that a document quotes are recorded with the
commit they belong to in docs/performance.md.
"""
