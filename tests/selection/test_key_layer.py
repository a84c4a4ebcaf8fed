import math
from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from safely import SAFELY
from torch import nn

from nc_finetune import ImageClassifier, load_delta, save_delta
from nc_finetune.backbones import Backbone, TimmBackbone, weights_hash
from nc_finetune.data import ImageData
from nc_finetune.methods import FullFinetuning, LayerFinetuning, ProbeFirst, SideFinetuning, SkipConnectionFinetuning
from nc_finetune.selection import ChooseKeyLayer, KeyLayerChoice, choose_key_layer, measure_blocks
from nc_finetune.selection._trials import trial_samples
from nc_finetune.selection._trials.block_trial import BlockTrial, FoldedTrial
from nc_finetune.selection._trials.halving import Measurement, Rung
from nc_finetune.selection._trials.trial_samples import FoldedSamples, TrialSamples
from nc_finetune.selection.backbone_scores import score_backbone
from nc_finetune.selection.key_layer import _steps, _tunable, _tuned_percent


def test_trials_leave_the_backbone_as_it_was(backbone: Backbone, data: ImageData) -> None:
    before = weights_hash(backbone.model)
    choice = choose_key_layer(backbone, data, LayerFinetuning, epochs=2)
    assert weights_hash(backbone.model) == before
    assert choice.block in backbone.block_names
    assert choice.block in choice.reason


def test_the_same_seed_chooses_the_same(backbone: Backbone, data: ImageData) -> None:
    rungs = [choose_key_layer(backbone, data, SkipConnectionFinetuning, epochs=2).rungs for _ in range(2)]
    assert rungs[0] == rungs[1]


def test_few_images_leave_enough_steps_to_tell_blocks_apart() -> None:
    assert _steps(1000, 6, beside=False) == 1000  # enough as it is
    assert _steps(105, 6, beside=False) == 6 * 24 * 2  # 200 images: 24 steps a block in the first round
    assert _steps(10, 6, beside=False) == 30  # but no more than three fine-tunings
    assert _steps(105, 6, beside=True) == 315


@pytest.mark.parametrize("kind", quick_first(1, [LayerFinetuning, SideFinetuning, SkipConnectionFinetuning]))
def test_folds_choose_without_the_validation_split(
    kind: type[LayerFinetuning], backbone: Backbone, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageData, "val_set", property(lambda _: pytest.fail("the validation split is looked at")))
    before, read = weights_hash(backbone.model), ImageData.eval_dataloader
    monkeypatch.setattr(
        ImageData, "eval_dataloader", lambda data, split: read(data, {"train": "train"}.get(split, "not to be read"))
    )
    choices = [choose_key_layer(backbone, data, kind, epochs=2, folds=3) for _ in range(2)]
    assert choices[0].rungs == choices[1].rungs
    assert {found.images for found in choices[0].rungs[0].measured.values()} == {len(data.train_set)}
    assert "held-out images" in choices[0].reason
    assert weights_hash(backbone.model) == before


@pytest.mark.parametrize("block", ["layer2.0", "layer3.0"])
def test_trials_on_folds_are_those_on_each_alone(block: str, backbone: Backbone, data: ImageData) -> None:
    samples = FoldedSamples.load(data, 2)
    earlier = FoldedTrial(backbone, samples, lambda: LayerFinetuning("layer2.0"), learning_rate=1e-2)
    folded = FoldedTrial(backbone, samples, lambda: LayerFinetuning(block), learning_rate=1e-2, before=earlier)
    assert isinstance(folded.whole.inputs, dict)
    found, alone = folded.advance(4), []
    for part in samples.divided(samples.whole):
        copied = replace(part, train=part.train.rows(slice(None)), val=part.val.rows(slice(None)))
        trial = BlockTrial(backbone, copied, LayerFinetuning(block), learning_rate=1e-2)
        alone.append(trial.advance(4))
    assert found.images == sum(part.images for part in alone) == len(data.train_set)
    accuracy = sum(part.accuracy * part.images for part in alone) / found.images
    spread = sum(part.nc1 * part.images for part in alone) / found.images
    assert found.accuracy == pytest.approx(accuracy)
    assert found.nc1 == pytest.approx(spread, rel=1e-3)


def test_trials_on_an_empty_validation_split_are_refused(backbone: Backbone) -> None:
    data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, val_size=0)
    with pytest.raises(ValueError, match="trials of blocks are judged on the validation split, and that of 'sklearn:d"):
        choose_key_layer(backbone, data)
    assert all(math.isnan(found.ncc_accuracy) for found in measure_blocks(backbone, data))
    with pytest.raises(ValueError, match="scores of backbones are judged on the validation split"):
        score_backbone("test_resnet", None, data)


def test_random_generators_are_left_alone(backbone: Backbone, data: ImageData) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    choose_key_layer(backbone, data, LayerFinetuning, epochs=1)
    assert torch.equal(torch.rand(1), expected)


def test_a_trial_goes_on_from_where_it_was(backbone: Backbone, data: ImageData) -> None:
    samples = TrialSamples.load(data)
    split, whole = (BlockTrial(backbone, samples, LayerFinetuning("layer3.0"), learning_rate=1e-2) for _ in range(2))
    split.advance(1)
    kept = {name: value.clone() for name, value in split._kept.items()}
    whole.advance(1)
    assert all(torch.equal(value, whole._kept[name]) for name, value in kept.items())
    split.advance(2)
    assert any(not torch.equal(value, split._kept[name]) for name, value in kept.items())


def test_the_only_block_that_can_learn_is_found(backbone: Backbone, data: ImageData) -> None:
    """The first block alone sees the images; the others see nothing but their biases."""
    for name in backbone.block_names[1:]:
        for part in backbone.get_layer(name).modules():
            if isinstance(part, nn.Conv2d):
                nn.init.zeros_(part.weight)
                part.weight.register_hook(torch.zeros_like)
    choice = choose_key_layer(backbone, data, LayerFinetuning, epochs=10, learning_rate=1e-2)
    assert choice.block == "layer1.0"


def test_blocks_too_wide_for_a_skip_are_left_out(data: ImageData) -> None:
    backbone = ImageClassifier("tf_efficientnet_lite0", 10, weights=None).backbone
    narrow = backbone.num_features
    backbone.num_features = 40
    try:
        assert set(_tunable(backbone, data, SkipConnectionFinetuning, 100.0)) < set(backbone.block_names)
    finally:
        backbone.num_features = narrow


def make_trainer(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )


@pytest.mark.parametrize("nested", [False, True])
def test_auto_is_replaced_before_the_fit(nested: bool, data: ImageData, tmp_path: object) -> None:
    inner = SkipConnectionFinetuning("auto")
    model = ImageClassifier("test_resnet", 10, weights=None, method=ProbeFirst(inner, 1) if nested else inner)
    callback = ChooseKeyLayer()
    make_trainer(callback).fit(model, datamodule=data)
    assert callback.choice is not None
    block = callback.choice.block
    assert model.method.key_layer == inner.key_layer == block
    tuned = {name for name, value in model.backbone.model.named_parameters() if value.requires_grad}
    assert tuned
    assert all(name.startswith(block) for name in tuned)


def test_a_delta_of_a_chosen_block_is_built_again(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = ImageClassifier("test_resnet", 10, weights=None, method=SkipConnectionFinetuning("auto"))
    make_trainer(ChooseKeyLayer()).fit(model, datamodule=data)
    path = tmp_path_factory.mktemp("delta") / "delta.safetensors"
    save_delta(model, path)
    fresh = ImageClassifier("test_resnet", 10, weights=None, method=SkipConnectionFinetuning(model.method.key_layer))
    fresh.backbone.load_state_dict(model.backbone.state_dict())
    assert load_delta(path, fresh) is fresh


def test_auto_without_the_callback_is_refused(data: ImageData) -> None:
    model = ImageClassifier("test_resnet", 10, weights=None, method=LayerFinetuning("auto"))
    with pytest.raises(ValueError, match="ChooseKeyLayer; add it to the trainer"):
        make_trainer().fit(model, datamodule=data)


def test_the_callback_leaves_other_methods_alone(data: ImageData) -> None:
    model = ImageClassifier("test_resnet", 10, weights=None, method=FullFinetuning())
    callback = ChooseKeyLayer()
    make_trainer(callback).fit(model, datamodule=data)
    assert callback.choice is None


@pytest.mark.parametrize("method", [LayerFinetuning, SkipConnectionFinetuning])
def test_a_trial_behind_a_kept_prefix_measures_the_same(
    method: type[LayerFinetuning], backbone: Backbone, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = TrialSamples.load(data)
    kept = BlockTrial(backbone, samples, method("layer2.0"), learning_rate=1e-2)
    monkeypatch.setattr(trial_samples, "try_split", lambda *_: None)
    plain = BlockTrial(backbone, samples, method("layer2.0"), learning_rate=1e-2)
    assert isinstance(kept.train.inputs, dict)
    assert not isinstance(plain.train.inputs, dict)
    first, second = kept.advance(4), plain.advance(4)
    assert first.accuracy == second.accuracy
    assert first.nc1 == pytest.approx(second.nc1, rel=1e-3)


def test_a_prefix_goes_on_from_that_of_an_earlier_block(backbone: Backbone, data: ImageData) -> None:
    samples = TrialSamples.load(data)
    early, late = (LayerFinetuning(block) for block in ("layer2.0", "layer3.0"))
    before = BlockTrial(backbone, samples, early, learning_rate=1e-2)
    before.advance(2)
    on, whole = (BlockTrial(backbone, samples, late, learning_rate=1e-2, before=start) for start in (before, None))
    assert isinstance(on.val.inputs, dict)
    assert isinstance(whole.val.inputs, dict)
    torch.testing.assert_close(on.val.inputs["layer3.0"], whole.val.inputs["layer3.0"])


def test_a_prefix_does_not_go_back(backbone: Backbone, data: ImageData) -> None:
    samples = TrialSamples.load(data)
    before = BlockTrial(backbone, samples, LayerFinetuning("layer3.0"), learning_rate=1e-2)
    trial = BlockTrial(backbone, samples, LayerFinetuning("layer2.0"), learning_rate=1e-2, before=before)
    assert isinstance(trial.val.inputs, dict)
    assert trial.val.inputs["layer2.0"].isfinite().all()


def test_blocks_that_are_too_large_are_left_out_unless_all_are(data: ImageData) -> None:
    backbone = ImageClassifier("tf_efficientnet_lite0", 10, weights=None).backbone
    everything = _tunable(backbone, data, LayerFinetuning, 100.0)
    few = _tunable(backbone, data, LayerFinetuning, 10.0)
    assert set(everything) - set(few) == {"blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6.0"}
    for block in ("blocks.5.0", "blocks.5.1"):
        model = ImageClassifier(backbone, 10, method=LayerFinetuning(block))
        share = 100 * model.tuned_parameters / model.total_parameters
        assert _tuned_percent(backbone, LayerFinetuning(block), 10) == pytest.approx(share)
    assert _tunable(backbone, data, LayerFinetuning, 0.0) == everything


@pytest.mark.parametrize("kind", quick_first(1, [SideFinetuning, SkipConnectionFinetuning]))
def test_a_checkpoint_says_which_block_was_chosen(
    kind: type[LayerFinetuning], data: ImageData, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> None:
    path = tmp_path_factory.mktemp("run") / "it.ckpt"
    chosen = ["blocks.0", "blocks.4"]  # of the same shapes, and neither is the middle one

    def choose(self: ChooseKeyLayer, *_: object) -> KeyLayerChoice:
        found = Measurement(0.5, 1.0, 10)
        return KeyLayerChoice(block := chosen.pop(0), [Rung(1, {block: found}, {block: 1.0})], 0.0)

    def make(block: str = "auto") -> ImageClassifier:
        torch.manual_seed(0)
        return ImageClassifier(TimmBackbone("test_vit", None, {"img_size": 32}), 10, method=kind(block))

    monkeypatch.setattr(ChooseKeyLayer, "_choose", choose)
    trainer = make_trainer(ChooseKeyLayer())
    trainer.fit(model := make(), datamodule=data)
    trainer.save_checkpoint(path)
    (before,) = trainer.test(model, datamodule=data, verbose=False)
    assert make_trainer().test(make(), datamodule=data, ckpt_path=path, **SAFELY, verbose=False) == [before]

    resumed, trainer = make(), make_trainer(ChooseKeyLayer())
    trainer.fit(resumed, datamodule=data, ckpt_path=path, **SAFELY)  # chooses blocks.4 in vain
    assert not chosen
    assert resumed.method.key_layer == "blocks.0"
    trainer = make_trainer(ChooseKeyLayer())
    trainer.ckpt_path = path
    trainer.fit(resumed := make(), datamodule=data, **SAFELY)  # chooses nothing
    assert resumed.method.key_layer == "blocks.0"
    with pytest.raises(ValueError, match=r"tunes key_layer='blocks.0', the model blocks.2"):
        make_trainer().test(make("blocks.2"), datamodule=data, ckpt_path=path, **SAFELY, verbose=False)


def test_trials_of_two_phases_train_the_block(backbone: Backbone, data: ImageData) -> None:
    samples = TrialSamples.load(data)
    trial = BlockTrial(backbone, samples, method := ProbeFirst(SideFinetuning("layer2.0"), 3), learning_rate=0.1)
    before = [value.clone() for value in method.parameters()]
    trial.advance(2)
    assert not any(map(torch.equal, before, method.parameters()))
