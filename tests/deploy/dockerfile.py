"""A Dockerfile as data: its instructions, its final stage's environment, user and commands."""

import json
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tests.architecture.repository import ROOT


@dataclass(frozen=True)
class Dockerfile:
    """One Dockerfile of the repository.

    Attributes:
        path: relative to the repository's root.
        instructions: pairs of name and rest; lines that a backslash continues are joined, comments are left out.
    """

    path: Path
    instructions: list = field(default_factory=list)

    @classmethod
    def read(cls, path):
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
        return cls(Path(path), [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()])

    def all(self, name):
        """The rest of every instruction of that name."""
        return [rest for instruction, rest in self.instructions if instruction == name]

    def only(self, name):
        """The rest of the last instruction of that name."""
        return self.all(name)[-1]

    def copied_sources(self):
        """The repository paths that the image copies."""
        for words in map(shlex.split, self.all("COPY")):
            if not words[0].startswith("--from="):
                yield from words[:-1]

    def stages(self):
        """Names of the stages."""
        return {words[2] for words in map(str.split, self.all("FROM")) if len(words) == 3}

    def environment(self):
        """Variables of the last ENV, without those of the base image."""
        pairs = dict(word.split("=", 1) for word in shlex.split(self.only("ENV")))
        return {name: value.replace(":$PATH", ":/usr/local/bin:/usr/bin:/bin") for name, value in pairs.items()}

    def command(self):
        """The CMD."""
        return json.loads(self.only("CMD"))

    def health_check(self):
        """The command of the HEALTHCHECK."""
        return json.loads(self.only("HEALTHCHECK").split("CMD", 1)[1])

    def volumes(self):
        """Mount points of the volumes."""
        return json.loads(self.only("VOLUME"))

    def lock_filter(self):
        """The awk program that leaves torch, and what only torch requires, out of the lock file."""
        return re.search(r"awk '([^']+)'", os.linesep.join(self.all("RUN")))[1]


IMAGES = [Dockerfile.read("Dockerfile"), Dockerfile.read("deploy/jetson/Dockerfile")]
