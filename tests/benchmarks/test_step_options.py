import argparse

import pytest

from benchmarks.performance.step_options import DEFAULT, OPTIONS, measure


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, float]]:
    chosen = [name for name in OPTIONS if name not in (DEFAULT, "compiled blocks")]
    setting = {"network": "test_efficientnet", "key_layer": "blocks.3.0", "pixels": 64, "batch": 4, "repeats": 1}
    own = {"methods": ["SCL-FT, cached"], "options": chosen, "device": "cpu", "precision": "32", "fused": False}
    return measure(argparse.Namespace(**setting, **own))["SCL-FT, cached"]


def test_every_option_trains_the_same_net_on_the_same_batch(rows: dict[str, dict[str, float]]) -> None:
    assert rows[DEFAULT]["difference"] == 0
    assert rows[DEFAULT]["gain"] == 1
    for name, row in rows.items():
        assert row["difference"] < (5e-2 if name == "bf16-mixed" else 1e-4)


def test_short_floats_change_the_losses(rows: dict[str, dict[str, float]]) -> None:
    assert rows["bf16-mixed"]["difference"] > 1e-5


def test_blocks_are_compiled_as_long_as_they_are_measured() -> None:
    from nc_finetune import ImageClassifier
    from nc_finetune.methods import FullFinetuning

    model = ImageClassifier("test_resnet", 10, weights=None, method=FullFinetuning())
    held = OPTIONS["compiled blocks"].prepare(model)  # type: ignore[misc]
    assert "forward" in model.backbone.get_layer("layer2.0").__dict__
    assert held.compiled == model.backbone.block_names
