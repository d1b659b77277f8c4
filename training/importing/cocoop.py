"""CoCoOp checkpoints: a context, and the meta-net that shifts it per image.

Source: CoCoOp's repository, `trainers/cocoop.py`; the meta-net takes unit-norm image features.

Legend: N context tokens, W text width, E joint width, H hidden width.
"""

from typing import Final

from training.adapting.method import ExportedPrompts
from training.adapting.text_context import CONTEXT_TEMPLATE
from training.importing.clip_weights import FLOAT16
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout
from training.importing.token_embeddings import check_token_embeddings

LAYOUT: Final = Layout(
    method="cocoop",
    title="a CoCoOp checkpoint",
    model_name="prompt_learner",
    tensors=(
        "ctx [tokens, text width]",
        "meta_net.linear1.weight [hidden, joint width], .bias [hidden]",
        "meta_net.linear2.weight [text width, hidden], .bias [text width]",
    ),
    matches=lambda names: {"ctx", "meta_net.linear1.weight"} <= names,
)


def convert(tensors: CheckpointTensors, target: Target) -> Converted:
    """Convert the context to a text group of depth 1, and the meta-net.

    Raises:
        ImportFormatError: not a CoCoOp checkpoint, or not for this backbone.
    """
    backbone = target.base_model.backbone
    context_NW = tensors.take("ctx", "tokens", backbone.text_width)
    tensors.count_tokens(context_NW)
    first_HE = tensors.take("meta_net.linear1.weight", "hidden", backbone.embed_dim)
    n_hidden = first_HE.shape[0]
    meta_net = {
        "linear1.weight": first_HE,
        "linear1.bias": tensors.take("meta_net.linear1.bias", n_hidden),
        "linear2.weight": tensors.take("meta_net.linear2.weight", backbone.text_width, n_hidden),
        "linear2.bias": tensors.take("meta_net.linear2.bias", backbone.text_width),
    }
    template, notes = check_token_embeddings(
        tensors, "", target, CONTEXT_TEMPLATE, FLOAT16, is_only_backbone_check=True
    )
    tensors.finish()
    return Converted(ExportedPrompts(text_adapt=context_NW.unsqueeze(0), meta_net=meta_net), template, notes)
