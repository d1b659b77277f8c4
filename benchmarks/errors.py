"""Errors of the benchmarks."""


class BenchError(Exception):
    """A measurement is not possible here; the message gives the reason and the remedy."""
