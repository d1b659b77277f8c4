"""Measurements of servers that do not exist."""

from caspl.capacity.measurements import BatchTime, Measurements


def server(batches, **changes):
    """A server whose batches take these seconds by size, and whose HTTP and decoding take no time."""
    given = {
        "backbone": "tiny",
        "device": "cuda:0",
        "dtype": "float32",
        "date": "2026-11-30",
        "pictures": "none",
        "max_rows": max(batches),
        "n_concurrent": 1,
        "n_pipelined": 0,
        "n_cores": 2,
        "shares_cores": False,
        "batches": [BatchTime(rows=rows, seconds=seconds) for rows, seconds in sorted(batches.items())],
        "alone_s": batches[1],
        "decode_s": 0.0,
        "request_s": 0.0,
        "network_s": 0.0,
    }
    return Measurements(**given | changes)
