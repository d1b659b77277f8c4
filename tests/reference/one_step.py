"""Compare loss and gradients of a method with its paper's equations, in float64."""

import torch

from tests.base_models import relative_error, slow_twin, token_ids
from tests.reference.slow_clip import SlowClip

TOLERANCE = 1e-9


class UnnormalisedClip(SlowClip):
    """The slow CLIP, which also returns unnormalised features."""

    @classmethod
    def of(cls, base_model):
        twin = slow_twin(base_model)
        return cls(twin.w, vision_heads=twin.vision_heads, text_heads=twin.text_heads, quick_gelu=twin.quick_gelu)

    def _norm(self, x, name):
        self.last = super()._norm(x, name)
        return self.last

    def unnormalised_image(self, image_CHW, boost, adapt):
        """Unnormalised image features [E]."""
        self.image(image_CHW, boost, adapt)
        return self.last[0] @ self.w["visual.proj"]

    def unnormalised_text(self, ids, adapt, boost):
        """Unnormalised text features [E]."""
        self.text(ids, adapt, boost)
        return self.last[0] @ self.w["text_projection"]


def slow_features(base_model, images, texts, image_prompts, text_prompts):
    """f [B, E] of [CLS, patches, boost, V], g [K, E] of [SOS, T, boost, text, EOT], and s."""
    slow = slow_twin(base_model)
    f = [slow.image(image, base_model.image_boost, image_prompts) for image in images]
    g = [slow.text(token_ids(base_model, text), text_prompts, base_model.text_boost) for text in texts]
    return torch.stack(f), torch.stack(g), slow.w["logit_scale"].exp()


def cross_entropy(scores_BK, labels_B):
    """Mean of -log softmax(z)_y, one row at a time."""
    rows = [row.logsumexp(0) - row[label] for row, label in zip(scores_BK, labels_B, strict=True)]
    return torch.stack(rows).mean()


def assert_same_step(method, batch, expected):
    """Loss and gradient of every parameter agree; `expected` is a scalar made of the same parameters."""
    found = method.loss(batch)
    assert relative_error(found, expected) < TOLERANCE
    names, parameters = zip(*method.named_parameters(), strict=True)
    ours = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for name, mine, other in zip(names, ours, theirs, strict=True):
        assert other.abs().max() > 0, f"{name} has no gradient to compare"
        assert relative_error(mine, other) < TOLERANCE, name
