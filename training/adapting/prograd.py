"""ProGrad: CoOp's context, with gradients projected so that they do not conflict with zero-shot knowledge.

    L_ce = CE(z, y),   L_kl = -τ² Σ_c softmax(z₀ / τ)_c · log softmax(z / τ)_c,   z₀ = s · <f₀(x), g₀> of the reference
    a = ∇L_ce,  b = ∇L_kl,  b̂ = b / ‖b‖;   step with   a - λ <a, b̂> b̂  where <a, b̂> < 0,   with a elsewhere

The projection is applied per parameter tensor; b itself is never added to the step. Source: ProGrad (arXiv 2205.14865),
section 3.2, and its repository.

Legend: B rows, K classes, N context tokens, W text width, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.adapting.attributes import AttributePrefix, AttributeRecipe
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.reference import ReferenceRecipe, TemplateRecipe, class_template
from training.adapting.text_context import CONTEXT_TEMPLATE, init_context, place_context
from training.errors import RecipeError
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.scores import class_scores


class ProGradRecipe(TemplateRecipe, ReferenceRecipe, AttributeRecipe):
    """ProGrad's settings; defaults from its repository.

    There, `context_init` and `template` are the data set's own words ("a type of pet, a photo of a"). It counts words,
    not tokens, so that behind words with a comma the last one stays in the text: `context_template` is "a {}.".
    """

    learning_rate: float = Field(default=0.002, gt=0)
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=32, ge=1)
    context_tokens: int = Field(default=16, ge=1, le=64, description="number of context tokens")
    context_init: str = Field(
        default="a photo of a",
        description="initial words of the last tokens, the tokens before them are zero; empty: random",
    )
    context_template: str = Field(default=CONTEXT_TEMPLATE, description="text behind the context, with one {}")
    kl_temperature: float = Field(default=1.0, gt=0, description="tau, the temperature of both sides of the KL")
    projection: float = Field(
        default=1.0, ge=0, description="lambda: fraction of the conflicting component that is removed"
    )


class ProGrad(nn.Module):
    """Prompt-aligned gradient; the parameters are `context`, [N, W], and those of the attributes, if any.

    Args:
        base_model: the model to adapt; `recipe.reference` derives the zero-shot reference from it.
        class_names: K names.
        recipe: all settings.

    Raises:
        RecipeError: the initial words are longer than the context.
        TextTooLongError: a class name with the prompts, or in the template, exceeds the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"features", "reference"})
    averages_over_images: ClassVar[bool] = False

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: ProGradRecipe) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        self.context = nn.Parameter(_init_context(base_model, recipe, generator).to(base_model.backbone.device))
        self.attributes = AttributePrefix(base_model.backbone, recipe, generator)
        self.base_model, self.recipe, self.template = base_model, recipe, recipe.context_template
        n_tokens = self.attributes.n_tokens(recipe.context_tokens)
        self.texts = place_context(base_model, class_names, n_tokens, template=self.template)
        reference = base_model.reference(recipe.reference)
        self.reference_text_KE = reference.zero_shot_text(class_names, [class_template(reference, recipe)])

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All parameters, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def prompt(self) -> Tensor:
        """The context with the attributes in front of it: [N', W]."""
        return self.attributes.before(self.context.unsqueeze(0))[0]

    def loss(self, batch: Batch) -> Tensor:
        """A scalar with the value of L_ce and the projected gradient.

        Both gradients are computed here, so the training loop needs no special case.
        """
        logits_BK = self.logits(batch)
        reference_BK = self._reference_logits(batch)
        parameters = list(self.parameters())
        task = nn.functional.cross_entropy(logits_BK, batch.labels_B)
        general = general_loss(logits_BK, reference_BK, self.recipe.kl_temperature)
        with torch.autocast(logits_BK.device.type, enabled=False):  # autograd should not run under autocast
            task_gradients = torch.autograd.grad(task, parameters, retain_graph=True)
            general_gradients = torch.autograd.grad(general, parameters)
        value = task.detach()
        for parameter, a, b in zip(parameters, task_gradients, general_gradients, strict=True):
            step = project_gradient(a, b, self.recipe.projection)
            # Adds 0 to the value and `step` to the gradient.
            value = value + ((parameter - parameter.detach()) * step).sum()
        return value

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f(x), g_c>: [B, K]."""
        features_BE = required_input(batch.features_BE, "features")
        return class_scores(self.base_model.logit_scale, features_BE, self.texts.encode(self.prompt()))

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """The context; inference does not need the reference."""
        return ExportedPrompts(text_adapt=detached(self.prompt()).unsqueeze(0))

    def _reference_logits(self, batch: Batch) -> Tensor:
        features_BE = required_input(batch.reference_BE, "reference")
        return class_scores(self.base_model.logit_scale, features_BE, self.reference_text_KE)


def general_loss(logits_BK: Tensor, reference_BK: Tensor, temperature: float) -> Tensor:
    """L_kl, the mean over the batch of -τ² Σ softmax(z₀/τ) log softmax(z/τ): KL up to a constant in z.

    Source: ProGrad (arXiv 2205.14865), section 3.2, with the temperature of its repository.
    """
    target_BK = (reference_BK / temperature).softmax(dim=-1)
    cross_BK = target_BK * (logits_BK / temperature).log_softmax(dim=-1)
    return -(temperature**2) * cross_BK.sum(dim=-1).mean()


def project_gradient(task: Tensor, general: Tensor, share: float) -> Tensor:
    """Remove the component of the task gradient a that opposes the general gradient b.

    Returns a - λ min(<a, b̂>, 0) b̂ with b̂ = b / ‖b‖, or a if b = 0. Source: ProGrad (arXiv 2205.14865), section 3.2.

    Args:
        task: a, of any shape.
        general: b, of the same shape.
        share: λ.
    """
    norm = general.norm()
    direction = torch.where(norm > 0, general / norm, torch.zeros_like(general))
    overlap = (task * direction).sum()
    return task - share * overlap.clamp(max=0) * direction


def _init_context(base_model: PromptedBackbone, recipe: ProGradRecipe, generator: torch.Generator) -> Tensor:
    """The initial context [N, W]: zeros, then the words, as in ProGrad's repository."""
    context_NW = init_context(base_model.backbone, recipe.context_init, recipe.context_tokens, generator)[0]
    n_missing = recipe.context_tokens - len(context_NW)
    if n_missing < 0:
        msg = (
            f"context_init {recipe.context_init!r} has {len(context_NW)} tokens, more than context_tokens "
            f"({recipe.context_tokens}). Raise context_tokens or shorten context_init."
        )
        raise RecipeError(msg)
    return nn.functional.pad(context_NW, (0, 0, n_missing, 0))
