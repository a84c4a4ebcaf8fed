import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nc_finetune.backbones import Backbone
from nc_finetune.data import ImageData
from nc_finetune.methods import LinearProbe
from nc_finetune.selection.features import fit_probe, method_features, subset_batches


def test_probe_is_scikit_learns_logistic_regression() -> None:
    chance = np.random.default_rng(0)
    features, labels = chance.normal(size=(60, 4)) * [1, 10, 100, 1] + 5, chance.integers(0, 3, 60)
    scaled = (features - features.mean(0)) / features.std(0)
    oracle = LogisticRegression(C=1 / (0.1 * 60), max_iter=1000, tol=1e-8).fit(scaled, labels)
    probe = fit_probe(torch.tensor(features).float(), torch.tensor(labels), 3, weight_decay=0.1)
    ours = probe(torch.tensor(features).float()).softmax(1).detach().numpy()
    assert ours == pytest.approx(oracle.predict_proba(scaled), abs=2e-3)


def test_features_that_never_change_do_no_harm() -> None:
    features = torch.cat([torch.randn(20, 2), torch.full((20, 1), 1e6)], dim=1)
    probe = fit_probe(features, torch.arange(20) % 2, 2)
    assert all(value.isfinite().all() for value in probe.parameters())


def test_a_subset_is_drawn_at_random_and_the_same_each_time(data: ImageData) -> None:
    first, again = (torch.cat([labels for _, labels in subset_batches(data, "val", 30)]) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first) == 30
    assert len(first.unique()) > 5


def test_features_come_in_eval_mode_without_a_graph(backbone: Backbone, data: ImageData) -> None:
    features, labels = method_features(LinearProbe(), backbone, subset_batches(data, "train"))
    assert features.shape == (50, backbone.num_features)
    assert labels.tolist() == data.train_set.labels
    assert not features.requires_grad
