from collections.abc import Iterator
from typing import Any

import open_clip
import pytest
from open_clip import factory, pretrained

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 3, "width": 24, "head_width": 12, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [2, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
TIMM = {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}
# Small models beside open_clip's own.
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-ViT": {"embed_dim": 20, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-ViT-quickgelu": {"embed_dim": 20, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-ViT-avg": {"embed_dim": 20, "vision_cfg": {**VIT, "pool_type": "avg"}, "text_cfg": TEXT},
    "tiny-tagged": {"embed_dim": 20, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-RN": {"embed_dim": 20, "vision_cfg": RESNET, "text_cfg": TEXT},
    "tiny-timm": {"embed_dim": 20, "vision_cfg": TIMM, "text_cfg": TEXT},
    "tiny-timm-classifier": {
        "embed_dim": 20,
        "vision_cfg": {**TIMM, "timm_proj": None, "timm_pool": "avg"},
        "text_cfg": TEXT,
    },
    "tiny-timm-bare": {
        "embed_dim": 64,
        "vision_cfg": {**TIMM, "timm_proj": "none", "timm_pool": "avg"},
        "text_cfg": TEXT,
    },
    "tiny-custom": {"embed_dim": 20, "custom_text": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-bias": {"embed_dim": 20, "init_logit_bias": -10, "vision_cfg": VIT, "text_cfg": TEXT},
}
OTHER = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear"}


@pytest.fixture(autouse=True, scope="session")
def _tiny_models_of_open_clip() -> Iterator[None]:
    tags = {
        "gelu": pretrained._pcfg(url="https://nowhere.invalid/a.pt"),
        "other": pretrained._pcfg(url="https://nowhere.invalid/b.pt", **OTHER),
        "quick": pretrained._pcfg(url="https://nowhere.invalid/c.pt", quick_gelu=True),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, config in CONFIGS.items():
            patch.setitem(factory._MODEL_CONFIGS, name, config)
        patch.setitem(pretrained._PRETRAINED, "tiny-tagged", tags)
        assert set(CONFIGS) <= set(open_clip.list_models())
        yield
