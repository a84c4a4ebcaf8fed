"""The bench of pre-trained networks: how they are trained, scored and ordered."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.pretraining import __main__ as command
from benchmarks.pretraining.networks import (
    FACTS,
    LOSSES,
    WEIGHTS,
    Pretraining,
    ProjectionHead,
    SupervisedContrastiveLoss,
    pretrain,
    read_networks,
)
from benchmarks.pretraining.picture import draw
from benchmarks.pretraining.scores import SCORES, ncti_parts, scores_of, sfda, with_ncti
from benchmarks.pretraining.tables import Measured, correlation, page
from nc_finetune.backbones import weights_hash

SMALL: dict[str, Any] = {
    "network": {"stem_type": "deep", "stem_width": 4, "layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    "image_size": 32,
    "batch_size": 256,
    "epochs": 1,
}


def blobs(spread: float, seed: int = 0, number: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * number) % 3
    means = torch.eye(3, 8, dtype=torch.double)
    return means[labels] + spread * torch.randn(3 * number, 8, generator=generator, dtype=torch.double), labels


def test_the_contrastive_loss_is_its_formula() -> None:
    points = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0])  # 2 has no other one of its class
    unit = points / points.norm(dim=1, keepdim=True)
    terms = []
    for one in range(7):
        others = [other for other in range(7) if other != one]
        positive = [other for other in others if labels[other] == labels[one]]
        total = sum(math.exp(unit[one] @ unit[other] / 0.2) for other in others)
        logs = [math.log(math.exp(unit[one] @ unit[other] / 0.2) / total) for other in positive]
        terms += [-sum(logs) / len(logs)] if logs else []
    found = SupervisedContrastiveLoss(0.2)(points, labels)
    assert found.item() == pytest.approx(sum(terms) / len(terms))


def test_a_batch_without_pairs_has_a_gradient_of_zero() -> None:
    points = torch.randn(3, 4, requires_grad=True)
    SupervisedContrastiveLoss()(points, torch.tensor([0, 1, 2])).backward()
    assert points.grad is not None
    assert points.grad.eq(0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_takes_logits_and_labels(loss: str) -> None:
    logits = ProjectionHead(6, 4, 2)(torch.randn(8, 6))
    value = LOSSES[loss]()(logits, torch.arange(8) % 4)
    value.backward()
    assert value.isfinite()


def test_all_networks_of_the_settings_can_be_read_and_built() -> None:
    settings = yaml.safe_load(command.SETTINGS.read_text())
    networks = read_networks(settings)
    assert len(networks) >= 12
    assert len({network.stem for network in networks}) == len(networks)
    with torch.device("meta"):
        widths = {network.spec(None).build(None).num_features for network in networks}
    assert widths == {128, 96}


@pytest.mark.parametrize(
    ("own", "message"),
    [({"los": "mse"}, "'los'"), ({"loss": "none"}, "must be one of"), ({"epochs": 0}, "at least 1 epoch")],
)
def test_settings_that_are_none_are_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_networks({"pretraining": {}, "networks": {"it": own}})


def test_weights_that_are_kept_are_the_network_that_was_trained_and_are_not_trained_again(tmp_path: Path) -> None:
    wanted = Pretraining(name="it, small", **SMALL)
    folder = tmp_path / "it"
    facts = pretrain(wanted, "sklearn:digits", folder)
    weights, said = folder / WEIGHTS, folder / FACTS
    assert json.loads(said.read_text()) == facts
    kept, fresh = wanted.spec(weights).build(str(weights)), wanted.spec(None).build(None)
    assert weights_hash(kept.model) == facts["hash"] != weights_hash(fresh.model)
    assert kept.preprocessing == fresh.preprocessing
    weights.unlink()
    assert pretrain(wanted, "sklearn:digits", folder) == facts  # nothing was trained
    assert not weights.exists()
    with pytest.raises(ValueError, match="other settings"):
        pretrain(Pretraining(name="it, small", **{**SMALL, "epochs": 2}), "sklearn:digits", folder)


def test_scores_prefer_classes_that_have_collapsed() -> None:
    near, far = (scores_of(*blobs(spread), 3) for spread in (0.05, 0.6))
    for name, sign in SCORES.items():
        assert sign * near[name] > sign * far[name], name
    first, second = with_ncti([near, far])
    assert first > second


def test_sfda_is_a_probability_and_takes_fewer_images_than_features() -> None:
    features, labels = blobs(0.3, number=2)
    wide = np.concatenate([features.numpy(), np.zeros((6, 8))], axis=1)
    assert 0 < sfda(wide, labels.numpy()) <= 1
    assert set(ncti_parts(wide, labels.numpy())) == {"seli", "ncc", "vc"}


def test_a_correlation_needs_networks_that_differ() -> None:
    assert math.isnan(correlation([1, 2, 3, 4], [1, 2, 3, 4])[0])
    assert math.isnan(correlation([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])[0])
    rank, low, high = correlation([1, 2, 3, 4, 5, math.nan], [2, 1, 3, 5, 4, 9])
    assert low < rank < high
    assert rank == pytest.approx(0.8)
    wider = correlation([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], alternatives=8)
    assert wider[1] < low < high < wider[2]


def test_the_page_names_networks_and_orders_them_by_each_score() -> None:
    networks = [Pretraining(name=name, channels=[8, 8, 8, 8 * (at // 3 + 1)]) for at, name in enumerate("abcdef")]
    places = dict(enumerate("abcdef"))
    accuracies = {(name, task, "scl_ft"): 50.0 + at for at, name in places.items() for task in ("home", "abroad")}
    accuracies |= {(name, "home", "linear_probe"): 30.0 - at for at, name in places.items()}
    scores = {(name, "abroad", "NC1"): -9.0 + at for at, name in places.items()}
    facts = {name: {"hash": name * 64, "seconds": 60.0} for name in "abcdef"}
    measured = Measured(networks, facts, accuracies, scores, "home")
    text = page(measured, "About.", "it.png")
    assert "](it.png)" in text
    assert draw(measured).startswith(b"\x89PNG")
    assert "| NC1 | 1.00 (1.00 to 1.00) | 1.00 |" in text
    assert (
        "- SCL-FT: NC1 orders networks with a mean Spearman of 1.00, place 1 of 3; clearly so on 1 of 1 tasks" in text
    )
    assert "| number of parameters | 0.88 (" in text
    assert "| probe on home | -1.00 (-1.00 to -1.00) | -1.00 |" in text
    assert "| a | `aaaaaaaaaaaa` | 1.0 | 30.0 | \N{EN DASH} | 9.00 |" in text


@pytest.mark.slow
def test_the_command_trains_tries_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = {
        "datasets": [{"source": "sklearn:digits", "name": "home", "image_size": 32}],
        "methods": [{"method": "LinearProbe", "options": {"solver": "lbfgs"}}],
        "samples_per_class": [4],
    }
    more = {"seeds": [0], "choice": "folds", "settings": {"epochs": 1}}
    transfer = {**home, **more, "datasets": [{"source": "sklearn:digits", "name": "abroad", "image_size": 24}]}
    networks = {"first": {}, "second, one": {"loss": "contrastive", "scale": None}, "third": {}}
    file, out = tmp_path / "settings.yaml", tmp_path / "out"
    settings = {"pretraining": SMALL, "networks": networks, "home": home, "transfer": transfer}
    file.write_text(yaml.safe_dump(settings))
    words = ["pretraining", "--settings", str(file), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--only", "first", "second, one"])
    command.main()
    text = (out / "pretraining.md").read_text()
    assert "2 networks" in text
    assert {path.parent.name for path in out.glob("*/scores.json")} == {"first", "second_one"}
    assert len(list(out.glob("*/*/results/*.json"))) == 4
    for weights in out.glob("*/weights.safetensors"):
        weights.unlink()  # of networks that are done they are needed no more
    command.main()
    assert (out / "pretraining.md").read_text() == text
    (out / "first" / "scores.json").unlink()
    with pytest.raises(ValueError, match="its weights are gone; remove it"):
        command.main()
    shutil.rmtree(out / "first")
    settings["transfer"]["samples_per_class"] = [5]
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="tried on other grids"):
        command.main()
    monkeypatch.setattr(sys, "argv", [*words[:-1], str(tmp_path / "none"), "--only", "none"])
    with pytest.raises(SystemExit):
        command.main()
