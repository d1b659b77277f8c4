"""GRIP: pseudo-labels that are predicted again by the prompts that were trained on them, and grow in number.

In iteration i of I, with U images and K classes:

    1. p(c | x) of the base model (i = 1), or with the prompts of iteration i - 1
    2. for each class, its k_i most confident images
    3. prompts from their initial values, trained with L = -log p(y | x) on these images and classes

    FPL    I = 1, k = 16              few pseudo-labels
    IFPL   k = 16                     the same number, refined
    GRIP   k_i = ⌊ i ⌊U/I⌋ / K ⌋      all images in the last iteration

The prompts are textual (CoOp), visual (shallow VPT) or multimodal (shallow UPT). Source: *Enhancing CLIP with CLIP*
(arXiv 2306.01669), its unsupervised setting: the three strategies and the three kinds of prompts. Numbers, selection
and schedule: its repository, `grip_train` in `methods/unsupervised_learning/training_strategies.py`,
`compute_pseudo_labels` in `utils/clip_pseudolabels.py`, and `methods_config/grip_*_config.yml`.

Differs from the repository: the selection does not depend on the order of the images (see `leaders`); all pseudo-labels
are trained on, while the repository leaves out a fifth if k is at least 10; the warm-up rate is constant, not rising;
visual prompts start at N(0, 0.02²), not N(0, 1/width); multimodal prompts are those of UPT's equations, while in the
repository a token attends to its counterpart of the other tower only. k is at least 1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from training.adapting.coop import CoOp, CoOpRecipe
from training.adapting.method import AdaptingMethod
from training.adapting.reference import TemplateRecipe
from training.adapting.upt import UPT, UPTRecipe
from training.adapting.vpt import VPT, VPTRecipe
from training.label_free.method import Learned, PseudoLabels, Unlabelled, most_confident
from training.loop import TrainState
from training.prompted_backbone import PromptedBackbone


class GRIPRecipe(TemplateRecipe):
    """The values of the paper's repository; multimodal prompts have defaults of their own."""

    learning_rate: float = Field(default=0.1, gt=0, description="0.01 for multimodal prompts")
    weight_decay: float = Field(default=0.1, ge=0)
    warmup_epochs: int = Field(default=5, ge=0, description="epochs at the constant warm-up learning rate")
    warmup_learning_rate: float = Field(default=1e-4, ge=0)
    epochs: int = Field(default=150, ge=1, description="epochs of each iteration")
    batch_size: int = Field(default=16, ge=1)
    augmentation: Literal["crop-flip", "strong", "none"] = Field(
        default="none", description="views that the prompts are trained on"
    )
    strategy: Literal["fpl", "ifpl", "grip"] = Field(
        default="grip",
        description="fpl: images_per_class pseudo-labels, once; ifpl: as many in each iteration; grip: more in each",
    )
    prompts: Literal["textual", "visual", "multimodal"] = Field(default="textual", description="CoOp, VPT or UPT")
    iterations: int = Field(default=10, ge=1, description="iterations of ifpl and grip")
    images_per_class: int = Field(default=16, ge=1, description="pseudo-labels per class of fpl and ifpl")
    tokens: int = Field(default=16, ge=1, le=64, description="prompt tokens; 4 per tower for multimodal prompts")
    depth: int = Field(default=1, ge=1, description="layers with their own visual or multimodal tokens")
    transformer_width: int = Field(default=128, ge=1, description="width of UPT's Transformer; its FFN has four times")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_multimodal_prompts(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("prompts") == "multimodal":
            return {"learning_rate": 0.01, "tokens": 4} | values
        return values

    def images_per_iteration(self, n_images: int, n_classes: int) -> list[int]:
        """Pseudo-labels per class of each iteration: k."""
        if self.strategy == "fpl":
            return [self.images_per_class]
        if self.strategy == "ifpl":
            return [self.images_per_class] * self.iterations
        per_iteration = n_images // self.iterations
        return [max(1, number * per_iteration // n_classes) for number in range(1, self.iterations + 1)]


def leaders(probabilities_UK: Tensor, n_per_class: int) -> PseudoLabels:
    """Give every class `n_per_class` images: those with the highest p(c | x) among its candidates.

    Candidates of class c are its `n_per_class` most confident images (as in UPL), and the images that are not among
    those of their own most probable class. So a class that is rarely the most probable one has images, too, and an
    image may have several classes. The result is sorted by class, then by image.
    Source: the repository's leaderboards, independent of the order of the images: there, an image is passed on to other
    classes if the leaderboard of its own class is full of more confident images at that moment.
    """
    n_images, n_classes = probabilities_UK.shape
    own = most_confident(probabilities_UK, n_per_class)
    is_candidate_UK = torch.ones(n_images, n_classes, dtype=torch.bool)
    is_candidate_UK[own.rows_N] = False
    is_candidate_UK[own.rows_N, own.labels_N] = True
    ranked_UK = probabilities_UK.masked_fill(~is_candidate_UK, -1.0).argsort(dim=0, descending=True, stable=True)
    n_kept_K = is_candidate_UK.sum(dim=0).clamp(max=n_per_class).tolist()
    rows = [ranked_UK[:n_kept, label].sort().values for label, n_kept in enumerate(n_kept_K)]
    labels_N = torch.arange(n_classes).repeat_interleave(torch.tensor(n_kept_K))
    return PseudoLabels(torch.cat(rows), labels_N)


def build_prompts(base_model: PromptedBackbone, class_names: Sequence[str], recipe: GRIPRecipe) -> AdaptingMethod:
    """Prompts in their initial state.

    Raises:
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """
    tokens, depth, width = recipe.tokens, recipe.depth, recipe.transformer_width
    if recipe.prompts == "textual":
        return CoOp(base_model, class_names, CoOpRecipe(seed=recipe.seed, context_tokens=tokens))
    if recipe.prompts == "visual":
        visual = VPTRecipe(
            seed=recipe.seed,
            template=recipe.template,
            boosted_text=recipe.boosted_text,
            image_tokens=tokens,
            image_depth=depth,
        )
        return VPT(base_model, class_names, visual)
    multimodal = UPTRecipe(seed=recipe.seed, tokens=tokens, depth=depth, head_width=width, ffn_width=4 * width)
    return UPT(base_model, class_names, multimodal)


def learn_grip(unlabelled: Unlabelled, recipe: GRIPRecipe) -> Learned:
    """Train prompts for all iterations; the last iteration's are exported."""
    base_model, names = unlabelled.base_model, unlabelled.class_names
    probabilities_UK = unlabelled.encoded.probabilities()
    counts = recipe.images_per_iteration(len(probabilities_UK), len(names))
    method, found, trained = (
        build_prompts(base_model, names, recipe),
        leaders(probabilities_UK, counts[0]),
        TrainState(),
    )
    for number, n_per_class in enumerate(counts, 1):
        if number > 1:
            found = leaders(unlabelled.score(method).double().softmax(dim=1), n_per_class)
            method = build_prompts(base_model, names, recipe)
        state = unlabelled.train(method, found, recipe, iteration=(number, len(counts)))
        trained = TrainState(trained.step + state.step, [*trained.losses, *state.losses])
    metrics = {"n_iterations": len(counts), "n_pseudo_labels_per_class": counts[-1], **found.metrics(len(names))}
    return Learned(method.fold(), method.template, metrics, trained)
