"""What scores classes besides fixed text features: a class head, a projector, or text features made for every image.

Knows tensors and the text tower. Does not know bundles, stacks or which domain asks. Heads compute in float32 whatever
the backbone's type (float64 stays float64): they are small, and their inputs are the towers' outputs.

Legend: B images, K classes, E joint width, F width of the text features, H hidden width, N context tokens, T text
tokens, W text width, R text rows that run at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.prompts import PromptGrid
from prompted_clip.text import embed_text, tokenize


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What one run of the image tower leaves for scoring.

    Attributes:
        embeddings_BE: v(x), the tower's output before it is brought to length 1; float32.
        unit_BE: f(x), the same at length 1; float32.
    """

    embeddings_BE: Tensor
    unit_BE: Tensor

    def of(self, rows_B: Tensor) -> "ImageFeatures":
        """Those of some of the images, by their positions."""
        return ImageFeatures(self.embeddings_BE[rows_B], self.unit_BE[rows_B])


@dataclass(frozen=True, eq=False)
class ClassHead:
    """A linear classifier of the bundle's own classes that shares the answer with the text features.

    Source: DePT (arXiv 2309.07439) and the method's repository, its channel-wise affine map folded into the weight.

    Attributes:
        weight_KE: [K, E].
        bias_K: [K].
        share: of this head in the logits, 0 to 1.
    """

    weight_KE: Tensor
    bias_K: Tensor
    share: float

    def blend(self, logits_BK: Tensor, embeddings_BE: Tensor) -> Tensor:
        """(1 - share) z + share (W v + b): [B, K]."""
        return (1 - self.share) * logits_BK + self.share * linear(embeddings_BE, self.weight_KE, self.bias_K)


@dataclass(frozen=True, eq=False)
class Projector:
    """Two linear layers that take images to the space of another model's text features.

    Source: PromptKD (arXiv 2403.02781) and the method's repository, its normalisation layer folded into the first one.

    Attributes:
        hidden_weight_HE: [H, E].
        hidden_bias_H: [H].
        weight_FH: [F, H].
        bias_F: [F].
    """

    hidden_weight_HE: Tensor
    hidden_bias_H: Tensor
    weight_FH: Tensor
    bias_F: Tensor

    def features(self, embeddings_BE: Tensor) -> Tensor:
        """W2 relu(W1 v + b1) + b2, brought to length 1: [B, F]."""
        hidden_BH = relu(linear(embeddings_BE, self.hidden_weight_HE, self.hidden_bias_H))
        return internals.unit_norm(linear(hidden_BH, self.weight_FH, self.bias_F))


@dataclass(frozen=True, eq=False)
class MetaNet:
    """A text context, and the two linear layers by which an image shifts it.

    Source: CoCoOp (arXiv 2203.05557), section 3.2.

    Attributes:
        context_NW: what every image starts from.
        hidden_weight_HE: [H, E].
        hidden_bias_H: [H].
        weight_WH: [W, H].
        bias_W: [W].
    """

    context_NW: Tensor
    hidden_weight_HE: Tensor
    hidden_bias_H: Tensor
    weight_WH: Tensor
    bias_W: Tensor

    def contexts(self, features_BE: Tensor) -> Tensor:
        """The context plus W2 relu(W1 f + b1) + b2, the same shift for all of its tokens: [B, N, W]."""
        hidden_BH = relu(linear(features_BE, self.hidden_weight_HE, self.hidden_bias_H))
        return self.context_NW + linear(hidden_BH, self.weight_WH, self.bias_W).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class ConditionalHead:
    """Text features made per image and class: the text tower runs behind a context that the image has shifted.

    Sequence: [SOS, shifted context, boosting prompts, class text, EOT] (CasPL, arXiv 2409.17805, section 3.2).

    Attributes:
        net: the context and what shifts it.
        ids_KT: token ids of the class texts, padded to the longest.
        eot_K: their EOT positions before prompts are inserted, likewise.
    """

    net: MetaNet
    ids_KT: Tensor
    eot_K: Tensor

    @classmethod
    def for_texts(
        cls, backbone: Backbone, net: MetaNet, texts: Sequence[str], boost: PromptGrid | None
    ) -> "ConditionalHead":
        """The head that chooses among `texts`, on the host.

        Raises:
            TextTooLongError: a text does not fit together with the context and the boosting prompts.
        """
        n_prompts = len(net.context_NW) + (boost.n_tokens if boost is not None else 0)
        ids_KT, eot_K = tokenize(backbone, texts, n_prompts=n_prompts)
        return cls(net, ids_KT, eot_K)

    @property
    def n_classes(self) -> int:
        """K: text forwards that one image costs."""
        return self.ids_KT.shape[0]

    def similarities(
        self,
        backbone: Backbone,
        features_BE: Tensor,
        boost: PromptGrid | None,
        *,
        max_text_rows: int,
        on_progress: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """<f(x), g_c(x)>, where the image had a part in g_c.

        Args:
            backbone: the frozen CLIP.
            features_BE: f(x), unit norm.
            boost: boosting prompts of the text tower, shared by all rows, or None.
            max_text_rows: pairs of image and class that go through the text tower at once; what bounds the memory.
            on_progress: called after each such forward.

        Returns:
            [B, K] cosine similarities.
        """
        contexts_BNW = self.net.contexts(features_BE)
        n_rows = len(features_BE) * self.n_classes
        parts = []
        for start in range(0, n_rows, max_text_rows):
            rows_R = torch.arange(start, min(start + max_text_rows, n_rows), device=features_BE.device)
            image_R, class_R = rows_R // self.n_classes, rows_R % self.n_classes
            text_RE = self._encode(backbone, contexts_BNW[image_R], class_R, boost)
            parts.append((features_BE[image_R] * text_RE).sum(dim=-1))
            on_progress()
        return torch.cat(parts).reshape(len(features_BE), self.n_classes)

    def _encode(self, backbone: Backbone, contexts_RNW: Tensor, class_R: Tensor, boost: PromptGrid | None) -> Tensor:
        """Text features of one context and one class per row: [R, E], unit norm."""
        words_RTW = internals.embed_tokens(backbone.clip, self.ids_KT[class_R])
        # A context of depth 1 is nothing but token embeddings: no copy per layer and row, as a grid would need.
        x_RTW = torch.cat([words_RTW[:, :1], contexts_RNW.to(words_RTW.dtype), words_RTW[:, 1:]], dim=1)
        n_context = contexts_RNW.shape[1]
        eot_R = self.eot_K[class_R] + n_context
        return internals.unit_norm(embed_text(backbone, x_RTW, eot_R, boost, start=1 + n_context))


Head = ClassHead | Projector | ConditionalHead


def moved(head: Head, move: Callable[[Tensor], Tensor]) -> Head:
    """The same head elsewhere: `move` is given each of its tensors."""
    if isinstance(head, ConditionalHead):
        return replace(head, net=replace(head.net, **_moved_tensors(head.net, move)), **_moved_tensors(head, move))
    return replace(head, **_moved_tensors(head, move))


def _moved_tensors(part: Head | MetaNet, move: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: move(value) for name, value in vars(part).items() if isinstance(value, Tensor)}


def nbytes(head: Head | MetaNet) -> int:
    """Memory of a head's tensors, in bytes."""
    parts = vars(head).values()
    tensors = sum(part.nbytes for part in parts if isinstance(part, Tensor))
    return tensors + sum(nbytes(part) for part in parts if isinstance(part, MetaNet))
