"""An obvious, slow CLIP with deep prompts: one row at a time, one head at a time, float64.

Written from the equations alone (CLIP arXiv 2103.00020; deep prompts VPT arXiv 2203.12119; order of groups CasPL
arXiv 2409.17805 section 3.2). It reads a state dict and shares no code with the package.
"""

import math

import torch


class SlowClip:
    """Weights by name, plus the two facts that no tensor shows."""

    def __init__(self, state, *, vision_heads, text_heads, quick_gelu=False):
        self.w = {name: tensor.double() for name, tensor in state.items()}
        self.vision_heads, self.text_heads, self.quick_gelu = vision_heads, text_heads, quick_gelu

    def image(self, image_CHW, boost=None, adapt=None):
        """f(x) [E]: [CLS, patches, boost, adapt]; groups are [D, P, W]."""
        w, patch = self.w, self.w["visual.conv1.weight"].shape[-1]
        tokens = [w["visual.class_embedding"]]
        for top in range(0, image_CHW.shape[1], patch):
            for left in range(0, image_CHW.shape[2], patch):
                square = image_CHW[:, top : top + patch, left : left + patch].double()
                tokens.append((w["visual.conv1.weight"] * square).sum(dim=(1, 2, 3)))
        x = torch.stack(tokens) + w["visual.positional_embedding"]
        groups = [group.double() for group in (boost, adapt) if group is not None]
        x = torch.cat([x, *[group[0] for group in groups]])
        x = self._norm(x, "visual.ln_pre")
        first = len(tokens)
        n_layers = 1 + max(int(n.split(".")[3]) for n in w if n.startswith("visual.transformer.resblocks."))
        for layer in range(n_layers):
            x = self._replace(x, groups, layer, first)
            x = self._block(x, f"visual.transformer.resblocks.{layer}", self.vision_heads, causal=False)
        feature = self._norm(x[:1], "visual.ln_post")[0] @ w["visual.proj"]
        return feature / feature.norm()

    def text(self, ids, adapt=None, boost=None, prefix=None):
        """g [E]: [SOS, prefix, adapt, boost, rest]; `ids` end with EOT."""
        w = self.w
        words = w["token_embedding.weight"][torch.tensor(ids)]
        groups = [group.double() for group in (prefix, adapt, boost) if group is not None]
        x = torch.cat([words[:1], *[group[0] for group in groups], words[1:]])
        x = x + w["positional_embedding"][: len(x)]
        n_layers = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("transformer.resblocks."))
        for layer in range(n_layers):
            x = self._replace(x, groups, layer, 1)
            x = self._block(x, f"transformer.resblocks.{layer}", self.text_heads, causal=True)
        feature = self._norm(x[-1:], "ln_final")[0] @ w["text_projection"]
        return feature / feature.norm()

    def _replace(self, x, groups, layer, start):
        if layer == 0:
            return x
        rows = list(x)
        for group in groups:
            for offset in range(group.shape[1]):
                if layer < group.shape[0]:
                    rows[start + offset] = group[layer, offset]
            start += group.shape[1]
        return torch.stack(rows)

    def _norm(self, x, name):
        centred = x - x.mean(dim=-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    def _block(self, x, name, heads, *, causal):
        x = x + self._attention(self._norm(x, f"{name}.ln_1"), name, heads, causal)
        hidden = self._linear(self._norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        if self.quick_gelu:
            hidden = hidden * torch.sigmoid(1.702 * hidden)
        else:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return x + self._linear(hidden, f"{name}.mlp.c_proj")

    def _attention(self, x, name, heads, causal):
        width = x.shape[1]
        joint = x @ self.w[f"{name}.attn.in_proj_weight"].T + self.w[f"{name}.attn.in_proj_bias"]
        per_head, size = [], width // heads
        for head in range(heads):
            q, k, v = (joint[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
            scores = q @ k.T / math.sqrt(size)
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            per_head.append(scores.softmax(dim=-1) @ v)
        return self._linear(torch.cat(per_head, dim=1), f"{name}.attn.out_proj")

    def _linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]
