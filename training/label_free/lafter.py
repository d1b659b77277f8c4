"""LaFTer: a classifier trained on texts predicts the classes on which image prompts, and itself, are then trained.

    1. texts t of each class c:   L = CE( W (g(t) + ε) / |g(t) + ε|, c ),   ε ~ N(0, σ²)
    2. images x:                  y = argmax W f(x),   L = CE( W f(A(x); V), y )

A(x) is a strong view, and V are deep image prompts. y is computed once, with the W of step 1 and without prompts; step
2 trains V and W. CE is cross-entropy with label smoothing.
Source: LaFTer (arXiv 2305.18287) and its repository: the text-only training of a classifier, and the unsupervised
fine-tuning. Differs from them: the scales and shifts of the image tower's normalisation layers are frozen, because all
domains share one image tower. Differs from the repository: W starts at the mean text features times s, the scale of
CLIP's logits, not at random values; texts with noise are normalised; a class has descriptions or templates, not both;
prompts are deep; strong views are those of `strong_views`, not SimSiam's.

The layer replaces the text features for the bundle's own classes. Legend: B rows, K classes, M texts, E joint width.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from pydantic import Field
from torch import Tensor, nn

from prompt_store.class_names import comparison_key
from prompted_clip.internals import unit_norm
from training.adapting.deep_prompts import deep_image_prompts
from training.adapting.method import Batch, ExportedPrompts, Input, LinearHead, detached, required_input
from training.adapting.reference import TemplateRecipe
from training.errors import RecipeError
from training.label_free.method import Learned, PseudoLabels, Unlabelled
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone

TEMPLATES: Final = tuple(str(template("{}")) for template in OPENAI_IMAGENET_TEMPLATES)
"""OpenAI's hand-written templates."""


class LaFTerRecipe(TemplateRecipe):
    """Both steps; `smoothing` is that of the paper's repository, the other values are inferred."""

    learning_rate: float = Field(default=0.0025, gt=0)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=32, ge=1)
    augmentation: Literal["crop-flip", "strong", "none"] = Field(default="strong", description="the view A(x)")
    crop_scale_min: float = Field(default=0.5, gt=0, le=1, description="minimum area of a random crop, as a fraction")
    image_tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer in the image tower")
    image_depth: int = Field(default=9, ge=1, description="layers with their own image tokens, at most the tower's")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing of both losses")
    text_steps: int = Field(default=400, ge=0, description="steps of the text classifier, each on all texts")
    text_learning_rate: float = Field(default=0.001, gt=0, description="Adam's rate for the text classifier")
    text_noise: float = Field(default=0.05, ge=0, description="typical length of the noise on a unit text feature")
    templates: int = Field(
        default=len(TEMPLATES),
        ge=0,
        le=len(TEMPLATES),
        description="OpenAI templates for classes without descriptions, in addition to the base model's template",
    )
    descriptions: dict[str, list[str]] = Field(default={}, description="sentences about a class, by its name")


class LaFTer(nn.Module):
    """Image prompts V and the layer W: `image_prompts` [L, P, vision width] and `weight` [K, E].

    Args:
        base_model: the frozen CLIP, boosted or plain.
        weight_KE: W of the text classifier.
        template: text of labels other than the bundle's own classes.
        recipe: number and depth of prompts, smoothing, seed.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, weight_KE: Tensor, template: str, recipe: LaFTerRecipe) -> None:
        super().__init__()
        self.base_model, self.template, self.recipe = base_model, template, recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        self.image_prompts = deep_image_prompts(base_model.backbone, recipe.image_depth, recipe.image_tokens, generator)
        self.weight = nn.Parameter(weight_KE.to(base_model.backbone.device))

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Prompts and layer, at the recipe's rate."""
        return [ParameterGroup([self.image_prompts, self.weight])]

    def logits(self, batch: Batch) -> Tensor:
        """Class scores W f(A(x); V): [B, K]."""
        images_BCHW = required_input(batch.images_BCHW, "images")
        features_BE = self.base_model.encode_images(images_BCHW, self.image_prompts)
        with torch.autocast(features_BE.device.type, enabled=False):
            return nn.functional.linear(features_BE, self.weight)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy with the pseudo-labels, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B, label_smoothing=self.recipe.smoothing)

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """The image prompts, and a linear head on unit features instead of the text features."""
        head = LinearHead(detached(self.weight), torch.zeros(len(self.weight)), share=1.0, reads_unit=True)
        return ExportedPrompts(image_adapt=detached(self.image_prompts), head=head)


def class_texts(
    class_names: Sequence[str], descriptions: Mapping[str, Sequence[str]], templates: Sequence[str]
) -> tuple[list[str], list[int]]:
    """Texts and their classes: a class's descriptions, or its name in each template.

    Raises:
        RecipeError: descriptions of a class that does not exist, or none in a class's list.
    """
    given = {comparison_key(name): texts for name, texts in descriptions.items()}
    known = {comparison_key(name) for name in class_names}
    if unknown := [name for name in descriptions if comparison_key(name) not in known]:
        raise RecipeError(f"descriptions has {unknown[0]!r}, which is not among the class names.")
    if empty := [name for name, texts in descriptions.items() if not texts]:
        raise RecipeError(f"descriptions has no sentence for {empty[0]!r}; write one, or leave the class out.")
    texts: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        own = given.get(comparison_key(name)) or [template.replace("{}", name) for template in templates]
        texts += own
        labels += [label] * len(own)
    return texts, labels


def text_classifier(features_ME: Tensor, labels_M: Tensor, start_KE: Tensor, recipe: LaFTerRecipe) -> Tensor:
    """Step 1: W [K, E], trained on all texts at once with Adam.

    Args:
        features_ME: g(t), unit norm.
        labels_M: class of each text, int64.
        start_KE: the initial W.
        recipe: steps, rate, noise, smoothing and seed.
    """
    weight_KE = start_KE.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight_KE], lr=recipe.text_learning_rate)
    generator = torch.Generator().manual_seed(recipe.seed)
    sigma = recipe.text_noise / features_ME.shape[1] ** 0.5
    for _ in range(recipe.text_steps):
        noise_ME = sigma * torch.randn(features_ME.shape, generator=generator, dtype=features_ME.dtype)
        loss = text_loss(weight_KE, features_ME + noise_ME, labels_M, recipe.smoothing)
        (weight_KE.grad,) = torch.autograd.grad(loss, [weight_KE])
        optimizer.step()
    return weight_KE.detach()


def text_loss(weight_KE: Tensor, noisy_ME: Tensor, labels_M: Tensor, smoothing: float) -> Tensor:
    """The loss of step 1, of text features with noise."""
    scores_MK = unit_norm(noisy_ME) @ weight_KE.T
    return nn.functional.cross_entropy(scores_MK, labels_M, label_smoothing=smoothing)


def learn_lafter(unlabelled: Unlabelled, recipe: LaFTerRecipe) -> Learned:
    """Train the text classifier, then prompts and classifier on all images.

    Raises:
        RecipeError: see `class_texts`.
        TextTooLongError: a text exceeds the text tower's context length.
    """
    encoded, base_model, names = unlabelled.encoded, unlabelled.base_model, unlabelled.class_names
    texts, labels = class_texts(names, recipe.descriptions, [encoded.template, *TEMPLATES[: recipe.templates]])
    labels_M = torch.tensor(labels)
    features_ME = base_model.zero_shot_text(texts, ["{}"]).float().cpu()
    means_KE = torch.stack([features_ME[labels_M == label].mean(dim=0) for label in range(len(names))])
    start_KE = base_model.logit_scale * unit_norm(means_KE)
    weight_KE = text_classifier(features_ME, labels_M, start_KE, recipe)
    label_U = (encoded.features_UE @ weight_KE.T).argmax(dim=1)
    method = LaFTer(base_model, weight_KE, encoded.template, recipe)
    found = PseudoLabels(torch.arange(len(label_U)), label_U)
    trained = unlabelled.train(method, found, recipe)
    metrics = {"n_texts": len(texts), "n_described_classes": len(recipe.descriptions), **found.metrics(len(names))}
    return Learned(method.fold(), encoded.template, metrics, trained)
