"""The recordings of the reference system, replayed against this project: ``python -m tests.replay DIR``."""
