"""Options of `caspl boost`: `--images`, `--classes` and `--data` of one or several domains, and the teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console

from prompt_store.manifest import MAX_DOMAIN_CHARS, is_domain
from training.hardware import BackboneSource
from training.unlabelled import UnlabelledData, read_data_set, read_folder


class SourceOptions:
    """Where the images and class names of each domain are.

    Args:
        domain: the name of a single domain.
        images: folders, `NAME=FOLDER` if there are several domains.
        classes: class lists, `NAME=FILE` or one for all folders.
        data: data sets, `NAME=DATA` if there are several domains.
        root: folder of the data sets.

    Raises:
        BadParameter: no images, a domain without class list or the reverse, missing, invalid or repeated names, a path
            that does not exist, or `root` without data sets.
    """

    def __init__(
        self, domain: str, images: Sequence[str], classes: Sequence[str], data: Sequence[str], root: Path | None
    ) -> None:
        if bool(images) != bool(classes):
            raise typer.BadParameter("--images and --classes belong together; one of them is missing")
        if not images and not data:
            raise typer.BadParameter("either --images and --classes, or --data, is required")
        if root is not None and not data:
            raise typer.BadParameter("only --data uses it", param_hint="--root")
        single = domain if len(images) + len(data) == 1 else None
        self._root = root
        self._folders = _existing("--images", _by_name("--images", images, single))
        self._data = _by_name("--data", data, single)
        if both := sorted(self._folders.keys() & self._data.keys()):
            raise typer.BadParameter(f"the domain {both[0]!r} is in --images, too", param_hint="--data")
        self._lists = _existing("--classes", _class_lists(classes, list(self._folders)))

    def read(self, console: Console, template: str | None = None) -> dict[str, UnlabelledData]:
        """Read class lists and images, by domain.

        Args:
            console: shows progress and notes.
            template: the teacher's template for all domains; None uses those of the data sets.

        Raises:
            TrainingError: any subclass, see `read_folder` and `read_data_set`.
        """
        found = {name: read_folder(folder, self._lists[name], console) for name, folder in self._folders.items()}
        found |= {name: read_data_set(data, self._root, console) for name, data in self._data.items()}
        return {name: replace(source, template=template or source.template) for name, source in found.items()}


def teacher_sources(
    archs: Sequence[str], pretrained: Sequence[str], preprocess_of: Sequence[str]
) -> list[BackboneSource]:
    """The teachers, whose options belong together by their order; an empty value is none.

    Raises:
        BadParameter: an option has values, but not one for each teacher.
    """
    columns: list[list[str | None]] = []
    for option, values in (("--teacher-pretrained", pretrained), ("--teacher-preprocess-of", preprocess_of)):
        if values and len(values) != len(archs):
            raise typer.BadParameter(
                f"{len(values)} for {len(archs)} teachers ({', '.join(archs)}); pass one for each, in the order of "
                "--teacher, '' for a teacher without",
                param_hint=option,
            )
        columns.append([value or None for value in values] or [None] * len(archs))
    return [BackboneSource(*row) for row in zip(archs, *columns, strict=True)]


def _class_lists(values: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The class list of each domain; a single one without a name is for all."""
    if len(values) == 1 and not _is_named(values[0]):
        return dict.fromkeys(names, values[0])
    lists = _by_name("--classes", values, None)
    if missing := [name for name in names if name not in lists]:
        raise typer.BadParameter(
            f"no class list for {', '.join(missing)}; add {missing[0]}=FILE, or pass one FILE for all domains",
            param_hint="--classes",
        )
    if unknown := [name for name in lists if name not in names]:
        raise typer.BadParameter(f"no --images for {', '.join(unknown)}", param_hint="--classes")
    return lists


def _by_name(option: str, values: Sequence[str], single: str | None) -> dict[str, str]:
    """Split `NAME=VALUE`; a single domain's value needs no name, and is not split if it is a path that exists."""
    if single is not None and values and not _is_named(values[0]):
        return {single: values[0]}
    found: dict[str, str] = {}
    for value in values:
        name, sign, path = value.partition("=")
        if not (sign and path):
            raise typer.BadParameter(
                f"several domains need a name each: expected NAME={value}, found {value!r}", param_hint=option
            )
        if not is_domain(name):
            raise typer.BadParameter(
                f"{name!r} in {value!r} is not a domain name: use lower-case letters, digits and single hyphens, start "
                f"with a letter, at most {MAX_DOMAIN_CHARS} characters; some names are reserved",
                param_hint=option,
            )
        if name in found:
            raise typer.BadParameter(f"the domain {name!r} is given twice", param_hint=option)
        found[name] = path
    return found


def _is_named(value: str) -> bool:
    """Whether a value is `NAME=VALUE` rather than a path with an equals sign in it."""
    return "=" in value and not Path(value).exists()


def _existing(option: str, values: Mapping[str, str]) -> dict[str, Path]:
    """The values as paths.

    Raises:
        BadParameter: one does not exist.
    """
    paths = {name: Path(value) for name, value in values.items()}
    if missing := [path for path in paths.values() if not path.exists()]:
        raise typer.BadParameter(f"Path '{missing[0]}' does not exist.", param_hint=option)
    return paths
