"""Checkpoints as other projects write them, for the tiny backbone: their names, their layouts, random prompts.

Written from the projects' documentation of their state, without the importer.
"""

import torch

from tests.tiny import tiny_backbone

CLASSES = ("cat", "dog", "striped red tulip")
WIDTH = 32  # of both towers of the tiny backbone
EMBED = 24
POSITIONS = 77


class Writer:
    """Random tensors, each new one drawn from the same seed."""

    def __init__(self, seed=0, backbone=None):
        self.backbone = backbone or tiny_backbone()
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def words(self, n_prompts, between="", classes=CLASSES):
        """`token_prefix` and `token_suffix`: embeddings of "<prompts> <between> name." padded to 77 positions."""
        tokenizer, table = self.backbone.tokenizer, self.backbone.clip.token_embedding.weight.detach()
        prefix, suffix = [], []
        for name in classes:
            words = tokenizer.encode(f"{between} {name}.".strip())
            ids = [tokenizer.sot_token_id, *[343] * n_prompts, *words, tokenizer.eot_token_id]
            embedded = table[torch.tensor(ids + [0] * (POSITIONS - len(ids)))]
            prefix.append(embedded[:1])
            suffix.append(embedded[1 + n_prompts :])
        return {"token_prefix": torch.stack(prefix), "token_suffix": torch.stack(suffix)}

    def clip(self, *, image_only=False):
        """CLIP's own weights under the names of these projects' modules."""
        state = {}
        for name, weight in self.backbone.clip.state_dict().items():
            if name.startswith("visual."):
                state["image_encoder." + name.removeprefix("visual.")] = weight.clone()
            elif name == "logit_scale":
                state[name] = weight.clone()
            elif not image_only and name != "token_embedding.weight":
                state["text_encoder." + name] = weight.clone()
        return state

    def coop(self, n_tokens=4, *, per_class=False, words=True):
        shape = (len(CLASSES), n_tokens, WIDTH) if per_class else (n_tokens, WIDTH)
        return {"ctx": self.randn(*shape)} | (self.words(n_tokens) if words else {})

    def cocoop(self, n_hidden=3):
        return {
            "ctx": self.randn(4, WIDTH),
            "meta_net.linear1.weight": self.randn(n_hidden, EMBED),
            "meta_net.linear1.bias": self.randn(n_hidden),
            "meta_net.linear2.weight": self.randn(WIDTH, n_hidden),
            "meta_net.linear2.bias": self.randn(WIDTH),
        } | self.words(4)

    def maple(self, n_tokens=2, depth=3, between="of a"):
        state = {"prompt_learner.ctx": self.randn(n_tokens, WIDTH)}
        names = ["proj", *(f"compound_prompt_projections.{i}" for i in range(depth - 1))]
        for index in range(depth - 1):
            state[f"prompt_learner.compound_prompts_text.{index}"] = self.randn(n_tokens, WIDTH)
        for name in names:
            state[f"prompt_learner.{name}.weight"] = self.randn(WIDTH, WIDTH) / 6
            state[f"prompt_learner.{name}.bias"] = self.randn(WIDTH)
        return state | self._learner_words(n_tokens, between) | self.clip()

    def ivlp(self, n_text=4, n_image=3, text_depth=3, image_depth=2, between=""):
        state = {"prompt_learner.ctx": self.randn(n_text, WIDTH)}
        for layer in range(1, text_depth):
            state[f"text_encoder.transformer.resblocks.{layer}.VPT_shallow"] = self.randn(n_text, WIDTH)
        state |= self._image_prompts(n_image, image_depth)
        return state | self._learner_words(n_text, between) | self.clip()

    def promptsrc(self, **options):
        twice = {
            "prompt_learner.ZS_" + name: weight
            for name, weight in self.clip(image_only=True).items()
            if name.startswith("image_encoder.")
        }
        return self.ivlp(**options) | twice

    def promptkd(self, n_hidden=7, n_teacher=10):
        trans = {
            "0.weight": self.randn(n_hidden, EMBED, 1, 1),
            "0.bias": self.randn(n_hidden),
            "1.weight": self.randn(n_hidden),
            "1.bias": self.randn(n_hidden),
            "1.running_mean": self.randn(n_hidden),
            "1.running_var": self.randn(n_hidden).square() + 0.1,
            "1.num_batches_tracked": torch.tensor(1234),
            "3.weight": self.randn(n_teacher, n_hidden, 1, 1),
            "3.bias": self.randn(n_teacher),
        }
        state = {f"VPT_image_trans.conv1.{name}": value for name, value in trans.items()}
        return state | self._image_prompts(4, 3) | self.clip(image_only=True)

    def _image_prompts(self, n_tokens, depth):
        state = {"image_encoder.VPT": self.randn(n_tokens, WIDTH)} if depth else {}
        for layer in range(1, depth):
            state[f"image_encoder.transformer.resblocks.{layer}.VPT_shallow"] = self.randn(n_tokens, WIDTH)
        return state

    def _learner_words(self, n_prompts, between):
        return {f"prompt_learner.{name}": value for name, value in self.words(n_prompts, between).items()}


def halved(state):
    """The state of a model that ran in float16; LayerNorm and embeddings stay float32 there."""
    kept = ("ln_", "positional_embedding", "class_embedding", "logit_scale", "conv1.1.")
    return {
        name: value.half() if value.is_floating_point() and not any(part in name for part in kept) else value
        for name, value in state.items()
    }


def save_dassl(path, state, epoch=50):
    """As Dassl saves: next to the state dict the optimizer's, and a schedule that holds a successor as an object."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    parameter.sum().backward()
    optimizer.step()
    schedule = {"warmup_epoch": 1, "cons_lr": 1e-5, "successor": successor, "last_epoch": epoch}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": epoch, "optimizer": optimizer.state_dict(), "scheduler": schedule}, path)
    return path
