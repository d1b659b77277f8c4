"""PromptSRC: IVLP's prompts, regularised towards a frozen model's features and scores, averaged over epochs.

Source: PromptSRC (arXiv 2307.06948), section 3.2 and its repository. With f0, g0 and z0 = s · <f0, g0> from a frozen
reference model:

    L       = CE(z, y) + 10 · mean|f - f0| + 25 · mean|g - g0| + L_logit
    L_logit = sum over batch and classes of KL( softmax(z0) ‖ softmax(z) ) / (B · K)
    θ       = sum over epochs e = 1..N of w_e · θ_e,   w_e = N(e; μ, σ²), normalised over 1..N

The sum over epochs (Gaussian prompt aggregation) replaces the prompts after the last epoch; until then training
continues from the current prompts. On a boosted base model, `reference` selects the boosted or the plain model as the
paper's frozen CLIP.

Legend: B rows, K classes, L prompt layers, P prompt tokens, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from pydantic import Field
from torch import Tensor, nn

from prompted_clip.internals import unit_norm
from training.adapting.attributes import AttributePrefix, AttributeRecipe
from training.adapting.deep_prompts import DeepPromptRecipe, deep_image_prompts, deep_text_prompts
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.reference import ReferenceRecipe
from training.adapting.unfrozen import LearnableBoostingRecipe, unfreeze, with_trained_boosting
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.scores import class_scores

REFERENCE_TEMPLATES: Final = tuple(str(template("{}")) for template in OPENAI_IMAGENET_TEMPLATES[:60])


class PromptSRCRecipe(DeepPromptRecipe, ReferenceRecipe, LearnableBoostingRecipe, AttributeRecipe):
    """The repository's values for base-to-new.

    Its other settings: few-shot `epochs=50 gpa_mean=30 gpa_std=30` (`gpa_mean=45 gpa_std=5` for Cars, Flowers,
    Aircraft, DTD, EuroSAT); cross-dataset `image_depth=3 text_depth=3 gpa_mean=6 gpa_std=10`.
    """

    reference_text: Literal["templates", "learned"] = Field(
        default="templates",
        description="text for a boosted reference: the templates, or the template it was boosted with; inferred",
    )
    image_weight: float = Field(default=10.0, ge=0, description="weight of the distance between f and f0")
    text_weight: float = Field(default=25.0, ge=0, description="weight of the distance between g and g0")
    gpa_mean: float = Field(default=15.0, description="epoch (from 1) with the largest weight in the average")
    gpa_std: float = Field(default=1.0, gt=0, description="standard deviation of the weights, in epochs")


class PromptSRC(nn.Module):
    """Independent prompts V [L, P, vision width] and T [L, P, text width], and their weighted sums over epochs.

    Args:
        base_model: the frozen CLIP, boosted or plain.
        class_names: K names.
        recipe: counts, depths, weights, reference and seed.

    Raises:
        TextTooLongError: a class name with the prompts, or in a reference template, exceeds the text tower's context
            length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images", "reference"})
    averages_over_images: ClassVar[bool] = True
    reference_KE: Tensor

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: PromptSRCRecipe) -> None:
        super().__init__()
        self.base_model, self.boosting = unfreeze(base_model, recipe)
        self.recipe = recipe
        generator = torch.Generator().manual_seed(recipe.seed)
        self.text_prompts, self.template = deep_text_prompts(
            base_model.backbone, recipe.text_depth, recipe.text_tokens, recipe.text_init, generator
        )
        self.image_prompts = deep_image_prompts(base_model.backbone, recipe.image_depth, recipe.image_tokens, generator)
        self.attributes = AttributePrefix(base_model.backbone, recipe, generator)
        n_prompts = self.attributes.n_tokens(recipe.text_tokens)
        self.tokens = base_model.tokenize(class_names, self.template, n_prompts=n_prompts)
        reference = base_model.reference(recipe.reference)
        templates = REFERENCE_TEMPLATES
        if reference.template is not None and recipe.reference_text == "learned":
            templates = (reference.template,)
        reference_KE = reference_text(reference, class_names, templates)
        self.register_buffer("reference_KE", reference_KE, persistent=False)
        for name, prompts in self._averaged():
            self.register_buffer(f"{name}_sum", torch.zeros_like(prompts))

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All parameters, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def prompt(self) -> Tensor:
        """The text prompts with the attributes in front of them."""
        return self.attributes.before(self.text_prompts)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy plus the three distances to the reference."""
        s, recipe = self.base_model.logit_scale, self.recipe
        f, g = self._features(batch)
        f0, g0 = required_input(batch.reference_BE, "reference"), self.reference_KE
        z, z0 = class_scores(s, f, g), class_scores(s, f0, g0)
        return (
            nn.functional.cross_entropy(z, batch.labels_B)
            + recipe.image_weight * nn.functional.l1_loss(f, f0)
            + recipe.text_weight * nn.functional.l1_loss(g, g0)
            + nn.functional.kl_div(z.log_softmax(1), z0.log_softmax(1), reduction="sum", log_target=True) / z.numel()
        )

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f, g>: [B, K]."""
        f, g = self._features(batch)
        return class_scores(self.base_model.logit_scale, f, g)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Add the weighted prompts to the sums; after the last epoch, replace the prompts by the sums."""
        weight = float(aggregation_weights(self.recipe)[epoch])
        for name, prompts in self._averaged():
            prompts_sum = self.get_buffer(f"{name}_sum")
            prompts_sum += weight * prompts
            if epoch + 1 == self.recipe.epochs:
                prompts.copy_(prompts_sum)

    def fold(self) -> ExportedPrompts:
        """Both prompt groups, unchanged."""
        own = ExportedPrompts(image_adapt=detached(self.image_prompts), text_adapt=detached(self.prompt()))
        return with_trained_boosting(own, self.base_model, self.boosting)

    def _averaged(self) -> list[tuple[str, nn.Parameter]]:
        """All trained prompts, with the names of their sums."""
        boosting = [(f"boosting_{index}", prompts) for index, prompts in enumerate(self.boosting)]
        attributes = [("attributes", self.attributes.soft)] if self.attributes.soft is not None else []
        return [("image", self.image_prompts), ("text", self.text_prompts), *attributes, *boosting]

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return (
            self.base_model.encode_images(required_input(batch.images_BCHW, "images"), self.image_prompts),
            self.base_model.encode_text(self.tokens, self.prompt()),
        )


@torch.no_grad()
def reference_text(reference: PromptedBackbone, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """g0 [K, E]: the mean over templates, normalised; the paper uses 60 of CLIP's ImageNet templates.

    As in the repository, the embeddings are averaged unnormalised.

    Raises:
        TextTooLongError: a class name in a template exceeds the text tower's context length.
    """
    per_template = [
        reference.embed_text(reference.tokenize(class_names, template, n_prompts=0)) for template in templates
    ]
    return unit_norm(torch.stack(per_template).mean(dim=0))


def aggregation_weights(recipe: PromptSRCRecipe) -> Tensor:
    """w_e for epochs 1..N: a normal density at e, normalised to sum 1, float64 [N].

    Computed as a softmax of the exponent, which stays finite where the density underflows to 0 for every epoch.
    """
    epochs = torch.arange(1, recipe.epochs + 1, dtype=torch.float64)
    return (-0.5 * ((epochs - recipe.gpa_mean) / recipe.gpa_std) ** 2).softmax(dim=0)
