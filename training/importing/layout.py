"""How a project's checkpoint looks, and its tensors taken one by one under that description.

Knows names, shapes and finite values, and says what was expected, what was found and what else it might be. Does not
know files, nor what a tensor means.

Legend: a size that is a number has to be met; a size that is a word is free and bears that name in messages.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import torch
from torch import Tensor

from prompt_store.manifest import MAX_TOKENS
from training.errors import ImportFormatError

_N_NAMED: Final = 8
_MAX_NAME_CHARS: Final = 120


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint.

    Attributes:
        method: as `--method` names it.
        title: as people name it.
        model_name: the folder that Dassl keeps this model's files in.
        tensors: what it holds besides CLIP's own weights, for messages.
        matches: whether tensors of these names look like it.
    """

    method: str
    title: str
    model_name: str
    tensors: tuple[str, ...]
    matches: Callable[[frozenset[str]], bool]


class CheckpointTensors:
    """A checkpoint's tensors, each taken once; `finish` refuses what nobody took.

    Args:
        source: the file, for messages.
        tensors: by name.
        layout: what they should be.
        detected: the layout they do look like, if it is another one.
    """

    def __init__(
        self, source: str, tensors: Mapping[str, Tensor], layout: Layout, detected: Layout | None = None
    ) -> None:
        self._source, self._layout, self._looks_like = source, layout, detected
        self._all, self._rest = dict(tensors), dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._rest

    def rank(self, name: str) -> int:
        """How many dimensions a tensor has; 0 if it is not there."""
        return self._rest[name].ndim if name in self._rest else 0

    def take(self, name: str, *sizes: int | str) -> Tensor:
        """Take a tensor of this shape: a float32 copy on the CPU, all values finite.

        Raises:
            ImportFormatError: it is missing, of another shape, or holds NaN or infinity.
        """
        if name not in self._rest:
            self.refuse(f"{name} {_show(sizes)} is missing")
        found = self._rest.pop(name)
        is_fitting = found.ndim == len(sizes) and all(
            size > 0 if isinstance(wanted, str) else size == wanted
            for size, wanted in zip(found.shape, sizes, strict=True)
        )
        if not is_fitting:
            self.refuse(f"{name} is {_show(found.shape)}, expected {_show(sizes)}")
        values = found.to(torch.float32, copy=True).contiguous()
        if not values.isfinite().all():
            msg = (
                f"{self._source}: {name} holds NaN or infinity, as training in float16 may leave it; "
                "import an earlier epoch or train again in another precision."
            )
            raise ImportFormatError(msg)
        return values

    def take_layers(self, name: str, *, start: int, sizes: tuple[int | str, ...]) -> list[Tensor]:
        """Take one tensor per layer, from layer `start` on without a gap.

        Args:
            name: with `{}` for the layer's number.
            start: the first number.
            sizes: of each.

        Raises:
            ImportFormatError: as `take`, and where a number is left out.
        """
        pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d{1,3})"))
        numbers = sorted(int(match[1]) for present in self._rest if (match := pattern.fullmatch(present)))
        if numbers != list(range(start, start + len(numbers))):
            self.refuse(
                f"{name.replace('{}', '<n>')} is numbered {numbers[:_N_NAMED]}, expected {start}, {start + 1}, …"
            )
        return [self.take(name.format(number), *sizes) for number in numbers]

    def count_tokens(self, prompts: Tensor) -> int:
        """How many prompt tokens [..., tokens, width] there are.

        Raises:
            ImportFormatError: more than a bundle holds.
        """
        n_tokens = prompts.shape[-2]
        if n_tokens > MAX_TOKENS:
            self.refuse(f"it has {n_tokens} prompt tokens, a bundle holds up to {MAX_TOKENS}")
        return n_tokens

    def take_raw(self, is_meant: Callable[[str], bool]) -> dict[str, Tensor]:
        """Take everything whose name is meant, unchecked and as stored."""
        names = [name for name in self._rest if is_meant(name)]
        return {name: self._rest.pop(name) for name in names}

    def finish(self) -> None:
        """Make sure that every tensor was taken.

        Raises:
            ImportFormatError: names those that the layout does not know.
        """
        if self._rest:
            self.refuse(f"it does not know {_list(self._rest)}")

    def refuse(self, problem: str) -> NoReturn:
        """Raise the error that compares what was expected with what was found."""
        msg = (
            f"{self._source} is not {self._layout.title} for this backbone: {problem}. "
            f"Expected {'; '.join(self._layout.tensors)}. Found {len(self._all)} tensors: {_list(self._all)}."
        )
        if self._looks_like is not None:
            msg += f" They look like {self._looks_like.title}: use --method {self._looks_like.method}."
        raise ImportFormatError(msg)


def _show(sizes: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _list(tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{printable(name)} {_show(tensor.shape)}" for name, tensor in list(tensors.items())[:_N_NAMED]]
    more = f" and {len(tensors) - _N_NAMED} more" if len(tensors) > _N_NAMED else ""
    return ", ".join(shown) + more


def printable(name: str) -> str:
    """A name from a file as it may go to a terminal."""
    return name[:_MAX_NAME_CHARS] if name.isprintable() else ascii(name[:_MAX_NAME_CHARS])
