"""Command line of the peers' programs."""

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arguments:
    """Options of every program.

    Attributes:
        threads: of each worker.
        model: folder of the converted model, for peers that need one.
        convert: write the model and exit, instead of serving it.
        photographs: folder of JPEG files to calibrate with.
        settings: NAME=VALUE settings of our own engine.
    """

    port: int
    backbone: str
    dtype: str
    workers: int
    threads: int
    model: Path
    convert: bool
    photographs: Path
    settings: list[str]


def read() -> Arguments:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--backbone", default="ViT-B-16")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, default=Path())
    parser.add_argument("--convert", action="store_true")
    parser.add_argument("--photographs", type=Path, default=Path())
    parser.add_argument("--set", dest="settings", action="append", default=[])
    return Arguments(**vars(parser.parse_args()))
