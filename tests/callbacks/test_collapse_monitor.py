from typing import Any

import numpy as np
import pytest
import torch
from conftest import TrainerFactory
from plain_module import CLASSES, PlainModule, make_loader
from reference import neural_collapse as reference
from torch import Tensor, nn

from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.callbacks._collapse import layer_sums


def features_by_hand(model: PlainModule, layer: nn.Module, take_input: bool = False) -> tuple[Any, Any]:
    kept: list[Tensor] = []

    def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
        value = inputs[0] if take_input else output
        kept.append(value.mean(dim=(2, 3)) if value.ndim == 4 else value)

    model.eval()
    with torch.no_grad(), layer.register_forward_hook(hook):
        labels = [model(images) is not None and target for images, target in make_loader()]
    return torch.cat(kept).double().numpy(), torch.cat(labels).numpy()


def fit(make_trainer: TrainerFactory, **options: Any) -> tuple[PlainModule, dict[str, float]]:
    callback, model = CollapseMonitor(**options), PlainModule()
    make_trainer(callback).fit(model, make_loader(), make_loader())
    [row] = callback.history
    return model, row


@pytest.mark.parametrize("split", ["train", "val"])
def test_values_are_those_of_the_oracle(make_trainer: TrainerFactory, split: str) -> None:
    model, row = fit(make_trainer, split=split)
    features, labels = features_by_hand(model, model.net.fc, take_input=True)  # type: ignore[arg-type]
    means = reference.class_means(features, labels, CLASSES)
    decided = reference.ncc_decisions(features, means)
    weight, bias = (value.detach().double().numpy() for value in model.net.fc.parameters())  # type: ignore[union-attr]
    expected = {
        "nc1": reference.nc1(features, labels, CLASSES),
        "nc2_equinorm": reference.nc2_equinorm(means),
        "nc2_equiangle": reference.nc2_equiangle(means),
        "cdnv": reference.cdnv(features, labels, CLASSES),
        "trace_ratio": reference.trace_ratio(features, labels, CLASSES),
        "ncc_accuracy": (decided == labels).mean(),
        "nc4": (decided != (features @ weight.T + bias).argmax(axis=1)).mean(),
        "nc3_etf_distance": reference.frame_distance(weight @ (means - means.mean(axis=0)).T, simplex=True),
    }
    assert {name: row[f"collapse/{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_slope_is_that_of_a_straight_line_through_the_layers(make_trainer: TrainerFactory) -> None:
    model, row = fit(make_trainer, layers=["layer*"])
    layers = [(model.net.get_submodule(f"layer{i}.0"), False) for i in (1, 2, 3, 4)]
    ratios = [
        reference.trace_ratio(*features_by_hand(model, layer, inputs), CLASSES)
        for layer, inputs in [*layers, (model.net.fc, True)]
    ]
    slope = np.polyfit(range(5), np.log(ratios), 1)[0]
    assert row["collapse/separation_slope"] == pytest.approx(slope, rel=1e-5)


def test_one_layer_has_no_slope(make_trainer: TrainerFactory) -> None:
    _, row = fit(make_trainer, layers="penultimate")
    assert not [key for key in row if "separation" in key]


@pytest.mark.parametrize(("kept", "passes"), [(22, 1), (21, 2)])
def test_one_pass_is_all_that_it_costs_or_two_where_features_are_too_many_to_keep(
    make_trainer: TrainerFactory, monkeypatch: pytest.MonkeyPatch, kept: int, passes: int
) -> None:
    monkeypatch.setattr(layer_sums, "max_kept_samples", lambda width: kept)
    plain = PlainModule()
    make_trainer().fit(plain, make_loader(), make_loader())
    model, _ = fit(make_trainer)
    assert model.images_seen - plain.images_seen == passes * 22


def test_a_classifier_without_weight_leaves_nc3_and_nc4_out(make_trainer: TrainerFactory) -> None:
    model = PlainModule()
    model.net.fc = nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    callback = CollapseMonitor(input_of_classifier="net.fc", strict=True)
    make_trainer(callback).fit(model, make_loader())
    assert {"collapse/nc3_etf_distance", "collapse/nc4"}.isdisjoint(callback.history[0])
    assert callback.history[0]["collapse/nc1"] > 0


def test_both_callbacks_log_beside_each_other(make_trainer: TrainerFactory) -> None:
    from nc_finetune import LayerwiseNC1

    trainer = make_trainer(CollapseMonitor(), LayerwiseNC1())
    trainer.fit(PlainModule(), make_loader())
    metrics = trainer.callback_metrics
    assert metrics["collapse/nc1"] == pytest.approx(metrics["nc1/penultimate"])
