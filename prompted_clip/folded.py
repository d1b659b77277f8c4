"""One domain's classifier as a module whose only input is pixels: prompts, class head, calibration and softmax folded.

Legend: B rows, H/W image, K classes, E joint width.
"""

from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prompted_clip.backbone import Backbone
from prompted_clip.errors import ExportError
from prompted_clip.heads import ConditionalHead, ImageFeatures
from prompted_clip.internals import unit_norm
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.scoring import static_logits
from prompted_clip.stack import PromptStack
from prompted_clip.vision import embed_image

InputType = Literal["uint8", "float32"]
PIXELS: Final = "pixels"
PROBABILITIES: Final = "probabilities"
EMBEDDING: Final = "embedding"


class FoldedClassifier(nn.Module):
    """Probabilities of a stack's classes from RGB pixels of 0 to 255, in float32 on the CPU.

    Args:
        backbone: in float32 on the CPU.
        stack: a domain's stack in host memory.
        with_embedding: return f(x), the unit-norm image features, too.

    Raises:
        ExportError: a conditional head.
    """

    def __init__(self, backbone: Backbone, stack: PromptStack, *, with_embedding: bool = False) -> None:
        super().__init__()
        if isinstance(stack.head, ConditionalHead):
            msg = (
                f"Domain {stack.domain!r} has a conditional head (CoCoOp): its text features depend on the image, so "
                "the text tower cannot be folded into constants. Adapt the domain with another method, or serve it."
            )
            raise ExportError(msg)
        self.visual = backbone.clip.visual  # registered, so that the weights keep their names in the exported file
        self.backbone = backbone
        self.stack = stack
        self.with_embedding = with_embedding

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Probabilities [B, K], and f(x) [B, E] if requested.

        Args:
            pixels: [B, 3, H, W] of the backbone's image size, uint8 or float32.
        """
        v_BE = embed_image(self.backbone, normalize_pixels(pixels, self.backbone.preprocess), self.stack.image)
        images = ImageFeatures(v_BE, unit_norm(v_BE))
        probabilities_BK = static_logits(images, self.stack).softmax(dim=-1)
        return (probabilities_BK, images.unit_BE) if self.with_embedding else (probabilities_BK,)

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs."""
        return [PROBABILITIES, EMBEDDING] if self.with_embedding else [PROBABILITIES]

    def example(self, input_type: InputType, n_rows: int) -> Tensor:
        """Random pixels, the same on every call: [B, 3, H, W]."""
        size = self.backbone.image_size
        generator = torch.Generator().manual_seed(0)
        pixels_BCHW = torch.randint(0, 256, (n_rows, 3, size, size), dtype=torch.uint8, generator=generator)
        return pixels_BCHW.to(getattr(torch, input_type))


@torch.no_grad()
def trace(model: FoldedClassifier, input_type: InputType, batch: int | None) -> ExportedProgram:
    """The operations of a folded classifier, with a fixed batch size or, if None, any."""
    example = model.example(input_type, batch or 2)  # torch would take 1 for a constant
    dynamic = {0: Dim("batch")} if batch is None else None
    return torch.export.export(model.eval(), (example,), dynamic_shapes=(dynamic,), strict=False)
