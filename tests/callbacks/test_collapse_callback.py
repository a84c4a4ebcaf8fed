"""Which values come out, when, and which arguments are refused, for modules that know nothing of us."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from conftest import TrainerFactory
from crossed import crossed
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from plain_module import CLASSES, PlainModule, make_loader, measure_by_hand

from nc_finetune import LayerwiseNC1
from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.functional import class_statistics

BLOCKS = ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]
LAYERS = ["stem", *BLOCKS, "penultimate"]


class CountingNC1(LayerwiseNC1):
    """Counts what it takes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.records: list[int] = []

    def _record(self, trainer: L.Trainer, epoch: int, values: Any) -> dict[str, float]:
        self.records.append(epoch)
        return super()._record(trainer, epoch, values)


def fit(
    make_trainer: TrainerFactory, callback: L.Callback, model: PlainModule | None = None, **options: Any
) -> PlainModule:
    model = PlainModule() if model is None else model
    make_trainer(callback, **options).fit(model, make_loader(), make_loader(16, seed=1))
    return model


@pytest.mark.parametrize(("layer", "split"), crossed(["layer2.0", "penultimate"], ["train", "val"]))
def test_values_are_those_of_features_taken_by_hand(make_trainer: TrainerFactory, split: str, layer: str) -> None:
    callback = LayerwiseNC1(split=split)
    model = fit(make_trainer, callback)
    inner = model.net.fc if layer == "penultimate" else model.net.get_submodule(layer)
    loader = make_loader() if split == "train" else make_loader(16, seed=1)
    assert callback.values[layer] == pytest.approx(
        measure_by_hand(model, inner, loader, layer == "penultimate"), rel=1e-6
    )
    assert list(callback.values) == LAYERS


def test_several_splits_share_a_row_and_the_first_has_plain_keys(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], split=["train", "val"])
    fit(make_trainer, callback, max_epochs=2)
    assert [list(row) for row in callback.history] == [["epoch", "step", "val/nc1/penultimate", "nc1/penultimate"]] * 2


def test_further_measures_have_keys_of_their_own(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["layer4.0", "penultimate"], measures=("nc1", "cdnv", "nc3_etf_distance"))
    fit(make_trainer, callback)
    assert set(callback.history[0]) == {
        *("epoch", "step", "nc1/layer4.0", "nc1/penultimate", "cdnv/layer4.0", "cdnv/penultimate"),
        "nc3_etf_distance/penultimate",
    }


def test_tokens_are_pooled_as_asked(make_trainer: TrainerFactory) -> None:
    values = []
    for pool, by_hand in (("class_token", lambda t: t[:, 0]), ("average", lambda t: t[:, 1:].mean(dim=1))):
        callback = LayerwiseNC1(layers=["blocks.2"], pool=pool)
        model = PlainModule("test_vit", lr=0.0)
        model.net = timm.create_model("test_vit", num_classes=CLASSES, img_size=32)
        fit(make_trainer, callback, model)
        values.append(callback.values["blocks.2"])
        expected = measure_by_hand(model, model.net.blocks[2], make_loader(), pool=by_hand)
        assert callback.values["blocks.2"] == pytest.approx(expected, rel=1e-6)
    assert values[0] != values[1]


def test_the_stem_of_a_transformer_has_a_value(make_trainer: TrainerFactory) -> None:
    model = PlainModule("test_vit", lr=0.0)
    model.net = timm.create_model("test_vit", num_classes=CLASSES, img_size=32)
    callback = LayerwiseNC1(strict=True)
    fit(make_trainer, callback, model)
    by_hand = measure_by_hand(model, model.net.blocks[0], make_loader(), True, lambda t: t[:, 1:].mean(dim=1))
    assert callback.values["stem"] == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize(("limit", "split"), crossed([8192, 100], ["train", "val"]))
def test_whole_maps_are_measured_with_a_scatter_or_in_two_passes(
    make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch, split: str, limit: int
) -> None:
    monkeypatch.setitem(class_statistics.__globals__, "MAX_SCATTER_FEATURES", limit)
    callback = LayerwiseNC1(layers=["layer3.0"], pool="flatten", split=split)
    model = fit(make_trainer, callback)
    loader = make_loader() if split == "train" else make_loader(16, seed=1)
    expected = measure_by_hand(model, model.net.layer3[0], loader, pool=lambda output: output.flatten(1))
    assert callback.values["layer3.0"] == pytest.approx(expected, rel=1e-6)


def test_half_precision_is_measured_on_what_autocast_gives(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["layer2.0"], split="val")
    model = fit(make_trainer, callback, precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):
        expected = measure_by_hand(model, model.net.layer2[0], make_loader(16, seed=1))
    assert callback.values["layer2.0"] == pytest.approx(expected, rel=1e-6)


def test_every_nth_epoch_and_the_last(make_trainer: TrainerFactory) -> None:
    train, val = CountingNC1(every_n_epochs=2), CountingNC1(every_n_epochs=2, split="val", prefix="val/")
    make_trainer(train, val, max_epochs=5).fit(PlainModule(), make_loader(), make_loader(16))
    assert train.records == val.records == [1, 3, 4]


def test_sanity_checking_is_not_measured(make_trainer: TrainerFactory) -> None:
    callback = CountingNC1(split="val")
    fit(make_trainer, callback, num_sanity_val_steps=2)
    assert callback.records == [0]


def test_fast_dev_run_measures_what_it_runs(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], split=["train", "val"], folder=tmp_path / "out")
    model = PlainModule()
    make_trainer(callback, fast_dev_run=True).fit(model, make_loader(), make_loader(16))
    assert callback.values["penultimate"] > 0
    assert model.images_seen == 5 + 5 + 5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_without_a_fit(make_trainer: TrainerFactory, stage: str) -> None:
    callback, model = LayerwiseNC1(split=["val", "test"]), PlainModule()
    trainer = make_trainer(callback)
    [logged] = getattr(trainer, stage)(model, make_loader(16, seed=1), verbose=False)
    expected = measure_by_hand(model, model.net.fc, make_loader(16, seed=1), True)
    assert logged[f"{'test/' * (stage == 'test')}nc1/penultimate"] == pytest.approx(expected, rel=1e-6)


def test_gradient_accumulation_changes_nothing_but_the_step(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(layers=["penultimate"])
    model = fit(make_trainer, callback, accumulate_grad_batches=2)
    expected = measure_by_hand(model, model.net.fc, make_loader(), True)
    assert callback.history == [{"epoch": 0, "step": 3, "nc1/penultimate": pytest.approx(expected, rel=1e-6)}]


@pytest.mark.parametrize("split", ["train", "val"])
def test_values_can_stop_training_and_choose_checkpoints(
    make_trainer: TrainerFactory, tmp_path: Path, split: str
) -> None:
    stop = EarlyStopping("nc1/penultimate", patience=1, min_delta=1e9)
    checkpoint = ModelCheckpoint(tmp_path, monitor="nc1/penultimate")
    callback = LayerwiseNC1(split=split)
    trainer = make_trainer(stop, checkpoint, callback, max_epochs=5, enable_checkpointing=True)
    trainer.fit(PlainModule(), make_loader(), make_loader(16))
    assert trainer.current_epoch == 2
    best = min(row["nc1/penultimate"] for row in callback.history)
    assert checkpoint.best_model_score == pytest.approx(best, rel=1e-5)


def test_one_scalar_is_on_the_progress_bar(make_trainer: TrainerFactory) -> None:
    callback = LayerwiseNC1(split=["train", "val"], measures=("nc1", "cdnv"))
    trainer = make_trainer(callback)
    trainer.fit(PlainModule(), make_loader(), make_loader(16))
    assert list(trainer.progress_bar_metrics) == ["nc1/penultimate"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": ["layer9.0"]}, r"unknown layer 'layer9.0'; did you mean 'layer\d.0'"),
        ({"layers": ["conv9"]}, "unknown layer 'conv9'; did you mean 'conv"),
        ({"layers": [7]}, "block index 7 is out of range: there are 4 blocks"),
        ({"network": "nett"}, "unknown network 'nett'; did you mean 'net'"),
        ({"input_of_classifier": "head"}, "unknown classifier 'head'"),
    ],
)
def test_unknown_names_are_errors_before_anything_runs(make_trainer: TrainerFactory, options: Any, match: str) -> None:
    model = PlainModule()
    with pytest.raises(ValueError, match=match):
        make_trainer(LayerwiseNC1(**options)).fit(model, make_loader())
    assert model.images_seen == 0


def test_number_of_classes_that_nobody_knows_is_an_error(make_trainer: TrainerFactory) -> None:
    model = PlainModule()
    model.net.reset_classifier(0)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"the number of classes is not known.* pass num_classes="):
        make_trainer(LayerwiseNC1(layers=["layer1.0"])).fit(model, make_loader())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"samples_per_class": 0}, "samples_per_class must be at least 1, got 0"),
        ({"max_batches": -1}, "max_batches must be at least 1, got -1"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"split": "valid"}, "unknown split 'valid'; did you mean 'val'"),
        ({"split": ()}, "split must name at least one"),
        ({"pool": "mean"}, "unknown pooling 'mean'"),
        ({"measures": ("nc9",)}, "unknown measure 'nc9'"),
        ({"measures": ()}, "measures must name at least one"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        LayerwiseNC1(**options)


def test_two_callbacks_that_would_mix_their_values_are_refused(make_trainer: TrainerFactory) -> None:
    with pytest.raises(ValueError, match="several LayerwiseNC1 would log different values to the same keys"):
        make_trainer(LayerwiseNC1(), LayerwiseNC1(split="val")).fit(PlainModule(), make_loader(), make_loader(16))


def test_a_prefix_tells_two_callbacks_apart(make_trainer: TrainerFactory) -> None:
    train, val = LayerwiseNC1(), LayerwiseNC1(1, split="val", prefix="val/")
    trainer = make_trainer(train, val)
    trainer.fit(PlainModule(), make_loader(), make_loader(16))
    assert trainer.callback_metrics["nc1/layer4.0"] == pytest.approx(train.values["layer4.0"])
    assert trainer.callback_metrics["val/nc1/layer4.0"] == pytest.approx(val.values["layer4.0"])


def test_nothing_is_warned_of_where_all_is_well(make_trainer: TrainerFactory) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make_trainer, LayerwiseNC1(split=["train", "val"]), max_epochs=2)
    assert [str(w.message) for w in caught if "nc_finetune" in str(w.filename) or "NC1" in str(w.message)] == []


class StopAtOnce(L.Callback):
    """Stops when nobody expects it."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize("splits", [["val"], ["train"], ["train", "val"]])
def test_the_last_epoch_is_measured_though_nobody_knew_it_was(make_trainer: TrainerFactory, splits: Any) -> None:
    callback = LayerwiseNC1(layers=["penultimate"], split=splits, every_n_epochs=None)
    make_trainer(callback, StopAtOnce(), max_epochs=9).fit(PlainModule(), make_loader(), make_loader(16))
    [row] = callback.history
    assert (row["epoch"], row["step"], len(row)) == (0, 5, 2 + len(splits))


def test_manual_optimization_of_several_optimizers(make_trainer: TrainerFactory) -> None:
    class Manual(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
                self.manual_backward(self._loss(batch))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(2)]

    callback = CountingNC1(every_n_epochs=None, strict=True)
    make_trainer(callback, max_steps=5).fit(Manual(), make_loader())  # two steps a batch: 5 is passed over
    assert [(row["epoch"], row["step"]) for row in callback.history] == [(0, 6)]


@pytest.mark.parametrize("num_classes", [None, 2])
def test_one_logit_tells_two_classes_apart(make_trainer: TrainerFactory, num_classes: int | None) -> None:
    class Binary(PlainModule):
        def _loss(self, batch: Any) -> Any:
            return torch.nn.functional.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float())

    def binary(rows: Any) -> Any:
        images, labels = torch.utils.data.default_collate(rows)
        return images, labels % 2

    model, monitor = Binary(), CollapseMonitor(num_classes=num_classes, strict=True)
    model.net.fc = torch.nn.Linear(96, 1)
    callback = LayerwiseNC1(num_classes=num_classes, strict=True)
    make_trainer(callback, monitor).fit(model, make_loader(collate_fn=binary))
    assert callback.values["penultimate"] == pytest.approx(monitor.history[0]["collapse/nc1"])
    assert "collapse/nc4" not in monitor.history[0]


@pytest.mark.parametrize(("split", "precision"), crossed(["train", "val"], ["bf16-true", "16-true", "64-true"]))
def test_true_precision_is_measured_as_it_is(make_trainer: TrainerFactory, precision: Any, split: str) -> None:
    dtype = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}[precision]
    callback, model = LayerwiseNC1(layers=["layer2.0"], split=split, strict=True), PlainModule(lr=0.0)
    make_trainer(callback, precision=precision).fit(model, make_loader(), make_loader())
    batches = [(images.to(dtype), labels) for images, labels in make_loader()]
    expected = measure_by_hand(model.to(dtype), model.net.get_submodule("layer2.0"), batches)
    assert callback.values["layer2.0"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["resnetv2_50", "dla34"])
def test_a_classifier_that_is_a_convolution_is_found(make_trainer: TrainerFactory, name: str) -> None:
    model = PlainModule(name)
    callback = LayerwiseNC1(layers=["penultimate"], strict=True)
    make_trainer(callback, limit_train_batches=1, max_epochs=1).fit(model, make_loader(9))
    assert callback.values["penultimate"] > 0
