"""Command line of the peers' programs."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Arguments:
    """Options of every program; `threads` are torch threads of each worker."""

    port: int
    backbone: str
    dtype: str
    workers: int
    threads: int


def read() -> Arguments:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--backbone", default="ViT-B-16")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return Arguments(**vars(parser.parse_args()))
