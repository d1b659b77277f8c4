"""Loss and gradients of TCP match its equations, one text at a time in float64."""

import pytest
import torch

from tests.base_models import feature_batch, slow_twin, tiny_base_model, token_ids
from tests.labelled import BOOSTS, CLASS_NAMES, perturbed
from tests.reference.one_step import assert_same_step, cross_entropy
from training.adapting.tcp import TCP, TCPRecipe


def slow_text(slow, ids, context_NW, class_NW, boost, inserted_at):
    """g [E] of [SOS, context, boost, rest]: at one layer, the class's tokens take the context's positions."""
    words = slow.w["token_embedding.weight"][torch.tensor(ids)]
    x = torch.cat([words[:1], context_NW, *([boost[0]] if boost is not None else []), words[1:]])
    x = x + slow.w["positional_embedding"][: len(x)]
    n_context = len(context_NW)
    for layer in range(3):
        if layer == inserted_at:
            x = torch.cat([x[:1], class_NW, x[1 + n_context :]])
        if boost is not None and 0 < layer < len(boost):
            x = torch.cat([x[: 1 + n_context], boost[layer], x[1 + n_context + boost.shape[1] :]])
        x = slow._block(x, f"transformer.resblocks.{layer}", slow.text_heads, causal=True)
    feature = slow._norm(x[-1:], "ln_final")[0] @ slow.w["text_projection"]
    return feature / feature.norm()


@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_step_of_tcp_matches_its_equations(boost, layer):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = TCPRecipe(layer=layer, context_template="{}, a thing.", template="an image of a {}.", text_weight=3.0)
    method = perturbed(TCP(base_model, CLASS_NAMES, recipe).double())
    batch, slow, w = feature_batch(base_model, [2, 0, 1]), slow_twin(base_model), dict(method.named_parameters())

    texts, frozen = [], []
    for name in CLASS_NAMES:
        g0 = slow.text(token_ids(base_model, f"an image of a {name}."), None, base_model.text_boost)
        hidden = w["meta_net.linear1.weight"] @ g0 + w["meta_net.linear1.bias"]
        hidden = hidden / (1 + (-1.702 * hidden).exp())
        tokens = w["meta_net.linear2.weight"] @ hidden + w["meta_net.linear2.bias"]
        ids = token_ids(base_model, f"{name}, a thing.")
        class_NW = torch.stack(tokens.split(32))
        texts.append(slow_text(slow, ids, w["context"], class_NW, base_model.text_boost, layer))
        frozen.append(g0)
    g, g0 = torch.stack(texts), torch.stack(frozen)
    s = slow.w["logit_scale"].exp()
    distance = sum(1 - g[c] @ g0[c] for c in range(3)) / 3

    assert len(w) == 5
    assert_same_step(method, batch, cross_entropy(s * batch.features_BE @ g.T, batch.labels_B) + 3 * distance)
