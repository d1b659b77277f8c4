"""The teachers of one boosting run: their prompts, checks, and the line that describes them."""

from collections.abc import Sequence

from prompt_store.bundle import Bundle
from prompted_clip.backbone import Backbone
from training.errors import BackbonePairError, BoostBundleError, RecipeError
from training.recipe import BoostRecipe
from training.teacher import Teacher


def pair_bundles(backbones: Sequence[Backbone], bundles: Sequence[Bundle]) -> list[tuple[Backbone, Bundle | None]]:
    """Each teacher's backbone with its prompts: a bundle goes to the first teacher of its backbone that has none.

    A single teacher takes a single bundle whatever its backbone, which `Teacher` checks.

    Raises:
        BoostBundleError: no teacher is left for a bundle.
    """
    if len(backbones) == len(bundles) == 1:
        return [(backbones[0], bundles[0])]
    found: list[Bundle | None] = [None] * len(backbones)
    for bundle in bundles:
        wanted = bundle.manifest.backbone
        free = [
            index
            for index, backbone in enumerate(backbones)
            if backbone.fingerprint == wanted.fingerprint and found[index] is None
        ]
        if not free:
            names = ", ".join(f"{backbone.arch} {backbone.pretrained}" for backbone in backbones)
            msg = (
                f"No teacher is left for the teacher bundle of domain {bundle.manifest.domain!r}, made for "
                f"{wanted.arch} {wanted.pretrained}; the teachers are {names}. Add the teacher it was made for, or "
                "remove the bundle."
            )
            raise BoostBundleError(msg)
        found[free[0]] = bundle
    return list(zip(backbones, found, strict=True))


def check_teachers(digests: Sequence[str], recipe: BoostRecipe) -> None:
    """Check that teachers differ, and that weights have several teachers to weigh.

    Args:
        digests: of each teacher's prompts, or the fingerprint of its backbone.
        recipe: all settings of the run.

    Raises:
        BackbonePairError: a teacher is given twice.
        RecipeError: `teacher_weights` with one teacher.
    """
    if repeated := sorted({digest for digest in digests if digests.count(digest) > 1}):
        places = [str(number) for number, digest in enumerate(digests, start=1) if digest == repeated[0]]
        msg = f"Teachers {' and '.join(places)} are the same model. Name each teacher once."
        raise BackbonePairError(msg)
    if len(digests) == 1 and recipe.teacher_weights != "mean":
        msg = (
            f"teacher_weights={recipe.teacher_weights} weighs several teachers, and there is one. Pass --teacher more "
            "than once, or remove the setting."
        )
        raise RecipeError(msg)


def describe_teachers(teachers: Sequence[Teacher], recipe: BoostRecipe) -> str:
    """One line on several teachers."""
    names = ", ".join(teacher.backbone.arch for teacher in teachers)
    line = f"{len(teachers)} teachers: {names}; teacher_weights {recipe.teacher_weights}"
    if recipe.distillation == "promptkd":
        line += f"; the student has the text features of the first one, {teachers[0].backbone.arch}"
    return line
