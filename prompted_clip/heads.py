"""Heads besides fixed text features: a class head, a projector, and text features computed per image.

Heads compute in float32 whatever the backbone's dtype (float64 stays float64): they are small, and their inputs are the
towers' outputs.

Legend: B images, K classes, E joint width, F width of the text features, H hidden width, O outputs, N context tokens,
T text tokens, W text width, R text rows that run at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.prompts import PromptGrid
from prompted_clip.text import embed_text


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """The image tower's output: v(x), and f(x) = v(x) / |v(x)|, both float32."""

    embeddings_BE: Tensor
    unit_BE: Tensor

    def of(self, rows_B: Tensor) -> "ImageFeatures":
        """The features of some images, by their indices."""
        return ImageFeatures(self.embeddings_BE[rows_B], self.unit_BE[rows_B])


@dataclass(frozen=True, eq=False)
class TwoLayers:
    """W2 relu(W1 x + b1) + b2: [B, E] to [B, O]."""

    hidden_weight_HE: Tensor
    hidden_bias_H: Tensor
    weight_OH: Tensor
    bias_O: Tensor

    def __call__(self, x_BE: Tensor) -> Tensor:
        """[B, O]."""
        hidden_BH = relu(linear(x_BE, self.hidden_weight_HE, self.hidden_bias_H))
        return linear(hidden_BH, self.weight_OH, self.bias_O)


@dataclass(frozen=True, eq=False)
class ClassHead:
    """A linear classifier over the bundle's own classes whose logits are blended with those of the text features.

    Source: DePT (arXiv 2309.07439) and the method's repository, its channel-wise affine map folded into the weight.
    Few-shot heads (`few_shot.py`) read unit features.
    """

    weight_KE: Tensor
    bias_K: Tensor
    share: float
    reads_unit: bool = False

    def blend(self, logits_BK: Tensor, images: ImageFeatures) -> Tensor:
        """(1 - share) z + share (W x + b), x = f if it reads unit features, else v: [B, K]."""
        x_BE = images.unit_BE if self.reads_unit else images.embeddings_BE
        return (1 - self.share) * logits_BK + self.share * linear(x_BE, self.weight_KE, self.bias_K)


@dataclass(frozen=True, eq=False)
class Projector:
    """Two linear layers from image embeddings to the space of another model's text features.

    Source: PromptKD (arXiv 2403.02781) and the method's repository, its normalisation layer folded into the first one.
    """

    layers: TwoLayers

    def features(self, embeddings_BE: Tensor) -> Tensor:
        """[B, F] float32, unit norm."""
        return internals.unit_norm(self.layers(embeddings_BE))


@dataclass(frozen=True, eq=False)
class ConditionalHead:
    """Text features per image and class: the text tower runs behind a context that the image has shifted.

    Sequence: [SOS, shifted context, boosting prompts, class text, EOT] (CasPL, arXiv 2409.17805, section 3.2).

    Attributes:
        context_NW: the context before the shift.
        shift: an image's shift of all context tokens, from f(x); CoCoOp (arXiv 2203.05557), section 3.2.
        boost: boosting prompts of the text tower, shared by all rows, or None.
        ids_KT: token ids of the class texts, padded to the longest.
        eot_K: their EOT positions before prompts are inserted.
    """

    context_NW: Tensor
    shift: TwoLayers
    boost: PromptGrid | None
    ids_KT: Tensor
    eot_K: Tensor

    @property
    def n_classes(self) -> int:
        """K, the text forwards per image."""
        return self.ids_KT.shape[0]

    def similarities(
        self, backbone: Backbone, features_BE: Tensor, *, max_text_rows: int, on_progress: Callable[[], None]
    ) -> Tensor:
        """<f(x), g_c(x)>, with text features that depend on the image: [B, K] float32 from unit-norm f(x).

        A text forward has at most `max_text_rows` pairs of image and class, which bounds its memory, and reports
        progress.
        """
        contexts_BNW = self.context_NW + self.shift(features_BE).unsqueeze(1)
        pairs = torch.arange(len(features_BE) * self.n_classes, device=features_BE.device)
        parts = []
        for pairs_R in torch.split(pairs, max_text_rows):
            image_R, class_R = pairs_R // self.n_classes, pairs_R % self.n_classes
            text_RE = self._encode(backbone, contexts_BNW[image_R], class_R)
            parts.append((features_BE[image_R] * text_RE).sum(dim=-1))
            on_progress()
        return torch.cat(parts).reshape(len(features_BE), self.n_classes)

    def _encode(self, backbone: Backbone, contexts_RNW: Tensor, class_R: Tensor) -> Tensor:
        """Text features of one context and one class per row: [R, E], unit norm."""
        words_RTW = internals.embed_tokens(backbone.clip, self.ids_KT[class_R])
        # A context of depth 1 consists of token embeddings only; a grid would need a copy per layer and row.
        x_RTW = torch.cat([words_RTW[:, :1], contexts_RNW.to(words_RTW.dtype), words_RTW[:, 1:]], dim=1)
        n_context = contexts_RNW.shape[1]
        eot_R = self.eot_K[class_R] + n_context
        return internals.unit_norm(embed_text(backbone, x_RTW, eot_R, self.boost, start=1 + n_context))


Head = ClassHead | Projector | ConditionalHead
