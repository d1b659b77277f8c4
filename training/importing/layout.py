"""Checkpoint layouts, and access to a checkpoint's tensors with checks of names, shapes and finite values.

Errors list expected and found tensors, and the layout that the tensors do match.

Legend: a numeric size must match; a size given as a word is free, and the word appears in messages.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import torch
from torch import Tensor

from prompt_store.manifest import MAX_TOKENS
from training.data.dataset import shorten
from training.errors import ImportFormatError

_MAX_NAME_CHARS: Final = 120


@dataclass(frozen=True)
class Layout:
    """The layout of one method's checkpoints.

    Attributes:
        method: value of `--method`.
        title: name in messages.
        model_name: folder of the model's files in a Dassl run.
        tensors: its tensors besides CLIP's weights, for messages.
        matches: whether a set of tensor names has this layout.
    """

    method: str
    title: str
    model_name: str
    tensors: tuple[str, ...]
    matches: Callable[[frozenset[str]], bool]


class CheckpointTensors:
    """A checkpoint's tensors. Each is taken once; `finish` fails if any are left.

    Args:
        source: file name for messages.
        tensors: by name.
        layout: expected layout.
        detected: the layout that the tensor names match, if it is another one.
    """

    def __init__(
        self, source: str, tensors: Mapping[str, Tensor], layout: Layout, detected: Layout | None = None
    ) -> None:
        self._source, self._layout, self._detected = source, layout, detected
        self._all, self._rest = dict(tensors), dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._rest

    def rank(self, name: str) -> int:
        """Number of dimensions of a tensor; 0 if it is missing."""
        return self._rest[name].ndim if name in self._rest else 0

    def take(self, name: str, *sizes: int | str) -> Tensor:
        """Take a tensor of the given shape as a float32 copy on the CPU.

        Raises:
            ImportFormatError: it is missing, has another shape, or contains NaN or infinity.
        """
        if name not in self._rest:
            self.fail(f"{name} {_show(sizes)} is missing")
        found = self._rest.pop(name)
        has_shape = found.ndim == len(sizes) and all(
            size > 0 if isinstance(expected, str) else size == expected
            for size, expected in zip(found.shape, sizes, strict=True)
        )
        if not has_shape:
            self.fail(f"{name} is {_show(found.shape)}, expected {_show(sizes)}")
        values = found.to(torch.float32, copy=True).contiguous()
        if not values.isfinite().all():
            msg = (
                f"{self._source}: {name} contains NaN or infinity, which training in float16 can cause. Import an "
                "earlier epoch, or train in another precision."
            )
            raise ImportFormatError(msg)
        return values

    def take_layers(self, name: str, *, start: int, sizes: tuple[int | str, ...]) -> list[Tensor]:
        """Take one tensor per layer, numbered consecutively from `start`.

        Args:
            name: with `{}` for the layer number.
            start: first layer number.
            sizes: shape of each tensor.

        Raises:
            ImportFormatError: see `take`; or a layer number is missing.
        """
        pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d{1,3})"))
        numbers = sorted(int(match[1]) for key in self._rest if (match := pattern.fullmatch(key)))
        if numbers != list(range(start, start + len(numbers))):
            self.fail(f"{name.replace('{}', '<n>')} is numbered [{shorten(numbers)}], expected {start}, {start + 1}, …")
        return [self.take(name.format(number), *sizes) for number in numbers]

    def count_tokens(self, prompts: Tensor) -> int:
        """Number of prompt tokens of prompts [..., tokens, width].

        Raises:
            ImportFormatError: more than a bundle allows.
        """
        n_tokens = prompts.shape[-2]
        if n_tokens > MAX_TOKENS:
            self.fail(f"it has {n_tokens} prompt tokens, but a bundle allows at most {MAX_TOKENS}")
        return n_tokens

    def take_raw(self, predicate: Callable[[str], bool]) -> dict[str, Tensor]:
        """Take all tensors whose names satisfy `predicate`, unchecked, in the stored dtype."""
        names = [name for name in self._rest if predicate(name)]
        return {name: self._rest.pop(name) for name in names}

    def finish(self) -> None:
        """Check that every tensor was taken.

        Raises:
            ImportFormatError: names the tensors that are not part of the layout.
        """
        if self._rest:
            self.fail(f"unexpected {_list(self._rest)}")

    def fail(self, problem: str) -> NoReturn:
        """Raise an error that lists the problem and the expected and found tensors."""
        msg = (
            f"{self._source} is not {self._layout.title} for this backbone: {problem}. "
            f"Expected {'; '.join(self._layout.tensors)}. Found {len(self._all)} tensors: {_list(self._all)}."
        )
        if self._detected is not None:
            msg += f" The tensors match {self._detected.title}: use --method {self._detected.method}."
        raise ImportFormatError(msg)


def _show(sizes: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _list(tensors: Mapping[str, Tensor]) -> str:
    return shorten(f"{printable(name)} {_show(tensor.shape)}" for name, tensor in tensors.items())


def printable(name: str) -> str:
    """A tensor name, truncated and escaped for the terminal."""
    return name[:_MAX_NAME_CHARS] if name.isprintable() else ascii(name[:_MAX_NAME_CHARS])
