import json

import open_clip
import pytest

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_arch(tmp_path_factory):
    """A registered open_clip configuration small enough to train in a test; `-deep` has one vision block more."""
    folder = tmp_path_factory.mktemp("configs")
    deep = TINY | {"vision_cfg": TINY["vision_cfg"] | {"layers": 3}}
    (folder / "demo-tiny.json").write_text(json.dumps(TINY))
    (folder / "demo-tiny-deep.json").write_text(json.dumps(deep))
    open_clip.add_model_config(folder)
    return "demo-tiny"
