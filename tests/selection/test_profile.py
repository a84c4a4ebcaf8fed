import csv
import io
import math
from dataclasses import replace

import pytest
import torch

from nc_finetune.backbones import Backbone, watch_outputs
from nc_finetune.data import ImageData
from nc_finetune.functional import class_collapse, closest_pairs, nc1, pair_cdnv, separation_law
from nc_finetune.functional.readout import solve_head
from nc_finetune.methods import LayerFinetuning, LayerReadout, LinearProbe
from nc_finetune.selection import block_costs, measure_blocks, profile_backbone, simple_rules
from nc_finetune.selection.features import method_features, subset_batches
from nc_finetune.selection.presentation import (
    profile_classes_csv,
    profile_classes_png,
    profile_csv,
    profile_png,
    profile_table,
)
from nc_finetune.selection.profile import ClassMeasures, law_of
from nc_finetune.selection.rules import argmin_nc1, relative_gradient_norms


def test_measures_of_the_penultimate_feature_are_those_of_its_features(backbone: Backbone, data: ImageData) -> None:
    last = measure_blocks(backbone, data)[-1]
    features, labels = method_features(LinearProbe(), backbone, subset_batches(data, "train"))
    assert last.block == "penultimate"
    assert last.nc1 == pytest.approx(nc1(features, labels, 10).item())
    means = torch.stack([features[labels == label].double().mean(0) for label in range(10)])
    others, truth = method_features(LinearProbe(), backbone, subset_batches(data, "val"))
    nearest = (others.double()[:, None] - means).square().sum(-1).argmin(1)
    assert last.ncc_accuracy == pytest.approx((nearest == truth).double().mean().item())


def test_the_law_is_over_all_layers(backbone: Backbone, data: ImageData) -> None:
    measures = measure_blocks(backbone, data)
    expected = separation_law(torch.tensor([found.trace_ratio for found in measures], dtype=torch.float64))
    assert law_of(measures).slope.item() == pytest.approx(expected.slope.item())


def test_later_blocks_need_fewer_operations_and_all_fewer_than_everything(backbone: Backbone, data: ImageData) -> None:
    costs = block_costs(backbone, data)
    training = [cost.training_flops for cost in costs]
    assert [cost.block for cost in costs] == list(backbone.block_names)
    assert training == sorted(training, reverse=True)
    assert all(0 < cost.cached_flops < cost.training_flops for cost in costs)


def test_tuned_share_is_that_of_the_method(backbone: Backbone, data: ImageData) -> None:
    from nc_finetune import ImageClassifier

    cost = next(cost for cost in block_costs(backbone, data) if cost.block == "layer2.0")
    model = ImageClassifier(backbone, 10, method=LayerFinetuning("layer2.0"))
    assert cost.tuned_percent == pytest.approx(100 * model.tuned_parameters / model.total_parameters)


def test_cache_is_what_the_block_sees_of_every_training_image(backbone: Backbone, data: ImageData) -> None:
    seen: list[int] = []
    backbone.eval()
    with (
        watch_outputs(backbone.model, ["layer1.0"], lambda _, output: seen.append(output[0].numel())),
        torch.no_grad(),
    ):
        backbone(data.train_set[0][0].unsqueeze(0))
    cost = next(cost for cost in block_costs(backbone, data) if cost.block == "layer2.0")
    assert cost.cache_bytes == 4 * seen[0] * len(data.train_set)


def test_flags_are_left_as_they_were(backbone: Backbone, data: ImageData) -> None:
    LayerFinetuning("layer3.0").freeze(backbone)
    before = [value.requires_grad for value in backbone.parameters()]
    block_costs(backbone, data)
    simple_rules(backbone, data)
    assert [value.requires_grad for value in backbone.parameters()] == before
    assert all(value.grad is None for value in backbone.parameters())


def test_smallest_nc1_leaves_undefined_blocks_out() -> None:
    assert argmin_nc1({"a": math.nan, "b": 2.0, "c": 3.0}, ["a", "b", "c"]) == "b"


def test_relative_gradient_norm_is_gradient_by_weights(backbone: Backbone, data: ImageData) -> None:
    head = torch.nn.Linear(backbone.num_features, 10)
    batches = list(subset_batches(data, "train", 16))[:1]
    found = relative_gradient_norms(backbone, head, batches, backbone.block_names)
    backbone.requires_grad_(True)
    torch.nn.functional.cross_entropy(head(backbone(batches[0][0])), batches[0][1]).backward()
    block = backbone.get_layer("layer2.0")
    gradient = math.sqrt(sum(p.grad.square().sum().item() for p in block.parameters() if p.grad is not None))
    weights = math.sqrt(sum(p.square().sum().item() for p in block.parameters()))
    assert found["layer2.0"] == pytest.approx(gradient / weights, rel=1e-5)


def test_simple_rules_name_blocks(backbone: Backbone, data: ImageData) -> None:
    rules = simple_rules(backbone, data)
    assert rules["middle block"] == backbone.middle_block
    assert {"argmin NC1", "Auto-RGN", "middle block"} == set(rules)
    assert set(rules.values()) <= set(backbone.block_names)


def test_a_profile_recommends_with_a_reason_and_is_written(backbone: Backbone, data: ImageData) -> None:
    profile = profile_backbone(backbone, data, LayerFinetuning, epochs=1)
    assert profile.choice is not None
    assert f"Recommended key layer: {profile.choice.block}." in profile.recommendation
    assert "Separation law" in profile.recommendation
    rows = list(csv.DictReader(io.StringIO(profile_csv(profile))))
    assert [row["block"] for row in rows] == [*backbone.block_names, "penultimate"]
    assert profile_png(profile).startswith(b"\x89PNG")
    assert profile_table(profile).row_count == len(rows)


def test_a_profile_by_class_names_classes_and_pairs(backbone: Backbone, data: ImageData) -> None:
    profile = profile_backbone(backbone, data, by_class=True)
    features, labels = method_features(LinearProbe(), backbone, subset_batches(data, "train"))
    expected = class_collapse(features, labels, 10).spread
    last = profile.measures[-1].classes
    assert last is not None
    assert tuple(last.spread) == tuple(data.class_names)
    assert list(last.spread.values()) == pytest.approx(expected.tolist())
    pairs = closest_pairs(pair_cdnv(features, labels, 10), 5)
    assert last.closest == pytest.approx({f"{first}|{second}": value for first, second, value in pairs})
    rows = list(csv.DictReader(io.StringIO(profile_classes_csv(profile))))
    assert len(rows) == len(profile.measures) * (10 + 5)
    assert rows[-5]["of"] == f"{pairs[0][0]}|{pairs[0][1]}"
    assert profile_classes_png(profile).startswith(b"\x89PNG")
    worst = data.class_names[int(expected.argmax())]
    assert f"Collapsed least in penultimate (spread / squared distance to the nearest class): {worst} " in (
        profile.recommendation
    )
    assert f"Closest there (CDNV): {pairs[0][0]} and {pairs[0][1]} " in profile.recommendation


def test_a_profile_names_classes_whose_means_coincide_and_none_without_images(
    backbone: Backbone, data: ImageData
) -> None:
    profile = profile_backbone(backbone, data, by_class=True)
    classes = ClassMeasures({"cat": 2.0, "dog": math.nan, "owl": math.inf}, {"cat|owl": math.inf})
    found = replace(profile, measures=[*profile.measures[:-1], replace(profile.measures[-1], classes=classes)])
    assert "nearest class): owl inf, cat 2." in found.recommendation
    assert "Closest there (CDNV): cat and owl inf." in found.recommendation


def test_a_profile_without_classes_says_nothing_of_them(backbone: Backbone, data: ImageData) -> None:
    profile = profile_backbone(backbone, data)
    assert profile.class_rows() == []
    assert "Collapsed least" not in profile.recommendation
    assert "classes" not in profile.rows()[0]


def test_without_trials_nothing_is_recommended(backbone: Backbone, data: ImageData) -> None:
    assert "No trials were run" in profile_backbone(backbone, data).recommendation


def test_a_profile_says_what_a_readout_recognises(backbone: Backbone, data: ImageData) -> None:
    profile = profile_backbone(backbone, data)
    assert {*profile.readout} == {"later_half", "penultimate", "last_blocks", "all"}
    features, labels = method_features(LayerReadout("all"), backbone, subset_batches(data, "train"))
    assert profile.readout["all"] == pytest.approx(solve_head(features, labels, data.num_classes).accuracy)
    assert f"later_half {100 * profile.readout['later_half']:.1f}" in profile.recommendation


def test_a_profile_of_one_image_a_class_has_no_readout(backbone: Backbone) -> None:
    few = ImageData("sklearn:digits", image_size=32, samples_per_class=1, val_size=20, batch_size=16)
    found = profile_backbone(backbone, few)
    assert found.readout == {}
    assert "readout" not in found.recommendation
