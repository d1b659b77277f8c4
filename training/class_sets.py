"""The classes of one boosting run: those of one domain, or of several domains that share one set of prompts.

Each image is scored among the classes of its own domain. The student encodes each class name once; the teacher has text
features per domain, since the domains' templates may differ.

Legend: D domains, N images, K class names of all domains, T classes of all domains, those of several counted each time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prompt_store.class_names import comparison_key


@dataclass(frozen=True)
class ClassSets:
    """Which classes each image is scored among.

    Attributes:
        names: the class names of all domains, each once, in the order of their first domain: K.
        student: per domain, the places of its classes in `names`, int64.
        teacher: per domain, the places of its classes among the teacher's T text features, int64.
        domain_N: each training image's domain, int64 [N], on the CPU.
    """

    names: tuple[str, ...]
    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    domain_N: Tensor

    @classmethod
    def of(cls, class_names: Mapping[str, Sequence[str]], n_images: Sequence[int]) -> "ClassSets":
        """Join the classes of domains.

        Args:
            class_names: the classes of each domain. Names that differ only in case or character width are one class,
                spelled as in its first domain.
            n_images: training images of each domain; the images are in the order of the domains.
        """
        place: dict[str, int] = {}
        joined: list[str] = []
        student, teacher, n_before = [], [], 0
        for names in class_names.values():
            for name in names:
                if place.setdefault(comparison_key(name), len(joined)) == len(joined):
                    joined.append(name)
            student.append(torch.tensor([place[comparison_key(name)] for name in names]))
            teacher.append(torch.arange(n_before, n_before + len(names)))
            n_before += len(names)
        domain_N = torch.arange(len(n_images)).repeat_interleave(torch.tensor(n_images))
        return cls(tuple(joined), tuple(student), tuple(teacher), domain_N)

    def __len__(self) -> int:
        """Number of domains: D."""
        return len(self.student)
