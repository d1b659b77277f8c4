"""The domains of one boosting run: checks, digests and facts for its provenance, and held-out images.

Legend: B images, H/W image size, K class names of all domains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from training.boost_scores import HeldOutScores, joint_scores
from training.class_sets import ClassSets
from training.data.class_list import check_class_names
from training.data.hold_out import hold_out
from training.data.views import Views
from training.errors import RecipeError
from training.files import digest_of
from training.recipe import BoostRecipe
from training.teacher import Teacher
from training.teacher_weights import joint_logits
from training.unlabelled import UnlabelledData


@dataclass(frozen=True)
class BoostSources:
    """Unlabelled images and classes of each domain that one set of boosting prompts is trained for.

    Attributes:
        data: by domain, sorted by name.
        recipe: all settings of the run.
        holdout: fraction of each domain's images to hold out.
    """

    data: Mapping[str, UnlabelledData]
    recipe: BoostRecipe
    holdout: float

    @classmethod
    def of(cls, data: Mapping[str, UnlabelledData], recipe: BoostRecipe, holdout: float) -> "BoostSources":
        """Sort the domains by name and check them.

        Raises:
            ClassListError: a class name is invalid, or there are too many.
            RecipeError: several domains, and a student that cannot learn them together.
        """
        sources = cls({name: data[name] for name in sorted(data)}, recipe, holdout)
        for name, source in sources.data.items():
            check_class_names(source.class_names, name)
        check_class_names(sources.sets.names, " and ".join(sources.data))
        if len(data) > 1 and recipe.distillation == "promptkd":
            msg = (
                "distillation=promptkd learns one domain: its student has the teacher's text features of that domain's "
                f"classes. Use distillation=caspl for {len(data)} domains."
            )
            raise RecipeError(msg)
        return sources

    @cached_property
    def split(self) -> dict[str, tuple[list[int], list[int]]]:
        """Indices of each domain's training and held-out images."""
        seed = self.recipe.seed
        return {name: hold_out(len(source.images.files), self.holdout, seed) for name, source in self.data.items()}

    @cached_property
    def sets(self) -> ClassSets:
        """The classes of each training image's domain."""
        names = {name: source.class_names for name, source in self.data.items()}
        return ClassSets.of(names, [len(trained) for trained, _ in self.split.values()])

    @property
    def trained_files(self) -> list[Path]:
        """The training images, domain by domain."""
        return [self.data[name].images.files[index] for name, (trained, _) in self.split.items() for index in trained]

    @property
    def n_held_out(self) -> int:
        """Number of held-out images of all domains."""
        return sum(len(held_out) for _, held_out in self.split.values())

    def template(self, name: str) -> str:
        """The teacher's template for a domain: its data set's, or the recipe's."""
        return self.data[name].template or self.recipe.teacher_template

    def models(self, backbone: Backbone, bundle: Bundle | None = None) -> dict[str, Teacher]:
        """A backbone with the classes and hand-written template of each domain, or with a bundle's prompts."""
        return {
            name: Teacher(backbone, source.class_names, self.template(name), bundle)
            for name, source in self.data.items()
        }

    def digests(self) -> dict[str, str]:
        """Digests of each domain's images and class names, for provenance and checkpoint."""
        found = {}
        for name, source in self.data.items():
            suffix = f"/{name}" if len(self.data) > 1 else ""
            found[f"images{suffix}"] = source.images.digest
            found[f"classes{suffix}"] = digest_of("\n".join(source.class_names).encode())
        return found

    def facts(self) -> dict[str, Any]:
        """Numbers of images for the report, in total and per domain if there are several."""
        counts = {
            name: {"n_images": len(source.images.files), "n_unreadable": len(source.images.unreadable)}
            for name, source in self.data.items()
        }
        total: dict[str, Any] = {
            key: sum(count[key] for count in counts.values()) for key in ("n_images", "n_unreadable")
        }
        if len(counts) > 1:
            total["domains"] = {
                name: count | {"teacher_template": self.template(name)} for name, count in counts.items()
            }
        return total

    def held_out_scores(self, student: Backbone, teachers: Sequence[Mapping[str, Teacher]]) -> "HeldOutDomains":
        """Scores on the held-out images of each domain that has any.

        Args:
            student: its size and preprocessing.
            teachers: each teacher's `models`.
        """
        found = {}
        for name, (_, held_out) in self.split.items():
            if held_out:
                source = self.data[name]
                files = [source.images.files[index] for index in held_out]
                views = Views.as_served(files, student.image_size, student.preprocess)
                labels = None if source.labels is None else [source.labels[index] for index in held_out]
                found[name] = HeldOutScores(views, labels, self._target([models[name] for models in teachers]))
        columns = dict(zip(self.data, self.sets.student, strict=True))
        return HeldOutDomains(found, columns)

    def _target(self, teachers: Sequence[Teacher]) -> Callable[[Tensor], Tensor]:
        """Class scores of one or several teachers, as in training."""
        return lambda pixels: joint_logits([teacher.logits(pixels) for teacher in teachers], self.recipe)

    def fallen(self, before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
        """Domains whose agreement on held-out images fell, with both values; none if there is only one domain."""
        keys = {name: f"agreement_{name}" for name in self.data}
        return [
            f"{name} ({before[key]:.1%} before, {after[key]:.1%} after)"
            for name, key in keys.items()
            if key in before and after[key] < before[key]
        ]


class HeldOutDomains:
    """Scores on the held-out images of each domain.

    Args:
        scores: by domain.
        columns: by domain, the places of its classes among the class names of all domains, int64.
    """

    def __init__(self, scores: Mapping[str, HeldOutScores], columns: Mapping[str, Tensor]) -> None:
        self._scores = scores
        self._columns = columns

    def of_each(self, models: Mapping[str, Teacher]) -> dict[str, float]:
        """Scores of a model per domain, as `joint_scores`."""
        return joint_scores({name: scores.of(models[name].logits) for name, scores in self._scores.items()})

    def of_shared(self, logits: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Scores of one model for all domains, as `joint_scores`; maps uint8 images [B, 3, H, W] to scores [B, K]."""

        def own(name: str) -> Callable[[Tensor], Tensor]:
            return lambda pixels: logits(pixels)[:, self._columns[name]]

        return joint_scores({name: scores.of(own(name)) for name, scores in self._scores.items()})
