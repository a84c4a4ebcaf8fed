from typing import Any

from nc_finetune.report._tables.labels import variant_labels
from nc_finetune.report._tables.variants import method_label, variant_of
from nc_finetune.results.result import Result

ETF = {"head": "SimplexETFHead", "options": {"orientation": "class_means"}}


def make_run(**changes: Any) -> Result:
    fields = {"backbone": "resnet18", "weights": "imagenet", "dataset": "digits", "method": "scl_ft", **changes}
    return Result(run_id="-".join(map(str, fields.values())), **fields)


def labels(*changes: dict[str, Any]) -> list[str]:
    runs = [make_run(**change) for change in changes]
    named = variant_labels(runs)
    return [named[variant_of(run)] for run in runs]


def test_methods_have_the_names_of_the_papers() -> None:
    names = ["linear_probe", "layer_ft", "scl_ft", "full_ft"]
    assert [method_label(name) for name in names] == ["linear probe", "layer FT", "SCL-FT", "full FT"]


def test_a_lone_variant_is_named_by_its_method_whatever_its_choices() -> None:
    assert labels({"head": "cosine_head", "key_layer": "layer2.0", "options": {"scale": "matched"}}) == ["SCL-FT"]


def test_key_layers_are_named_where_one_group_has_several() -> None:
    assert labels({"key_layer": "layer3.0"}, {"key_layer": "layer4.0"}) == ["SCL-FT, layer3.0", "SCL-FT, layer4.0"]


def test_key_layers_that_differ_between_backbones_alone_are_not_named() -> None:
    found = labels({"backbone": "resnet18", "key_layer": "layer3.0"}, {"backbone": "vit", "key_layer": "blocks.6"})
    assert found == ["SCL-FT", "SCL-FT"]


def test_the_key_layer_of_most_siblings_needs_no_mention() -> None:
    heads = [{"key_layer": "layer3.0", "head": head} for head in ("linear", "cosine_head")]
    span = {"key_layer": "layer3.0+layer3.1", "options": {"key_layer": ["layer3.0", "layer3.1"]}}
    assert labels(*heads, span) == ["SCL-FT", "SCL-FT, cosine head", "SCL-FT, layer3.0 + layer3.1"]


def test_a_chosen_key_layer_is_named_beside_a_fixed_one() -> None:
    chosen = {"key_layer": "layer4.0", "selection": {"block": "layer4.0"}}
    assert labels({"key_layer": "layer3.0"}, chosen) == ["SCL-FT, layer3.0", "SCL-FT, key layer chosen"]


def test_options_are_named_where_they_differ_and_defaults_are_not() -> None:
    found = labels({}, {"options": {"scale": "matched"}}, {"options": {"scale": "learned"}})
    assert found == ["SCL-FT", "SCL-FT, skip scale matched", "SCL-FT, skip scale learned"]


def test_options_that_all_siblings_share_are_not_named() -> None:
    found = labels({"options": {"rank": 4, "scale": 0.5}}, {"options": {"rank": 4, "scale": 2.0}})
    assert found == ["SCL-FT, skip scale 0.5", "SCL-FT, skip scale 2.0"]


def test_heads_are_named_in_words_with_what_sets_them_apart() -> None:
    frames = [{"head": "simplex_etf_head"}, {"head": "simplex_etf_head", "options": {"orientation": "class_means"}}]
    assert labels({}, *frames) == ["SCL-FT", "SCL-FT, ETF head", "SCL-FT, ETF head turned to class means"]


def test_a_head_within_a_head_follows_it() -> None:
    heads = [{"head": "bottleneck_head", "options": {"head": inner}} for inner in ("SimplexETFHead", ETF)]
    assert labels(*heads) == ["SCL-FT", "SCL-FT, bottleneck before ETF head turned to class means"]
    assert labels({}, *heads)[1:] == [
        "SCL-FT, bottleneck before ETF head",
        "SCL-FT, bottleneck before ETF head turned to class means",
    ]


def test_a_method_within_a_method_has_its_label() -> None:
    inner = [{"method": "lp_ft", "options": {"method": name}} for name in ("LayerFinetuning", "FullFinetuning")]
    assert labels(*inner) == ["LP-FT, then layer FT", "LP-FT, then full FT"]


def test_losses_and_switches_are_named() -> None:
    found = labels({}, {"loss": "focal_loss"}, {"options": {"normalize": False}})
    assert found == ["SCL-FT", "SCL-FT, focal loss", "SCL-FT, no normalize"]


def test_a_variant_has_one_name_in_all_groups() -> None:
    beside = [make_run(), make_run(options={"scale": "matched"})]
    alone = make_run(dataset="faces", options={"scale": "matched"})
    assert len(variant_labels([*beside, alone])) == 2


def test_no_two_variants_of_a_group_share_a_name() -> None:
    odd = [{"loss": "cross_entropy"}, {"loss": "cross_entropy_loss"}, {"key_layer": None}, {"key_layer": "a+b"}]
    odd += [{"key_layer": "a + b"}, {"options": {"a b": 1}}, {"options": {"a_b": 1}}]
    assert len(set(labels(*odd))) == len(odd) - 1  # the first and the third are the same


def test_what_folds_chose_from_is_named_where_nothing_else_tells_two_apart() -> None:
    lists = [{"key_layer": ["layer3.0", "layer4.0"]}, {"key_layer": ["layer1.0", "layer2.0"]}]
    first, second = ({"config": {"method": {"candidates": values}}} for values in lists)
    fixed = {"key_layer": "layer3.0", "config": {"method": {"candidates": None}}}
    assert labels(fixed, {"key_layer": "layer4.0", **first}) == ["SCL-FT, layer3.0", "SCL-FT, layer4.0"]
    alike = labels(first, second)
    assert len(set(alike)) == 2
    assert all("layer" in name for name in alike)
