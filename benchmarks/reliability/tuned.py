"""Classes that nobody has named, told by the scores of a tuned network and by ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.reliability.detectors import Taught
from benchmarks.reliability.features import BATCH, LAYERS, NETWORK, WEIGHTS, Setting, draw
from benchmarks.reliability.kept import Figures
from nc_finetune import ImageClassifier, ImageData
from nc_finetune.backbones import create_backbone
from nc_finetune.callbacks import PrefixCache
from nc_finetune.doubt import take_state
from nc_finetune.functional.readout import solve_head
from nc_finetune.methods import LayerReadout, SkipConnectionFinetuning
from nc_finetune.selection import quiet_trainer

EPOCHS, EACH, TESTED = 15, 40, 600
Auroc = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], float]


def tuned_figures(setting: Setting, data: Path, seed: int, auroc: Auroc) -> Figures:
    """Tune a network to seven classes in ten, and return AUROC of images of the others.

    Args:
        setting: The set.
        data: Folder of data sets.
        seed: Of the classes that are left out, the images and the fit.
        auroc: From a score, features from inside and from outside.
    """
    from pytorch_ood.detector import EnergyBased, MaxSoftmax

    images = ImageData(setting.source(data), image_size=setting.pixels, val_size=0, test_size=0).images("train")
    labels = torch.tensor(images.labels)
    classes = int(labels.max()) + 1
    unknown = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))[: round(0.3 * classes)]
    rows = draw(labels, EACH, seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = order[~torch.isin(order, rows)][:TESTED]
    rows = rows[~torch.isin(labels[rows], unknown)]
    named = labels[rows].unique(return_inverse=True)[1]
    outside = torch.isin(labels[held], unknown)
    pixels, new = (torch.stack([images[row][0] for row in some.tolist()]) for some in (rows, held))
    model = _fitted(pixels, named, seed)
    seen, shown = (_features(model.features, some) for some in (pixels, new))
    shrinkage = solve_head(seen, named, int(named.max()) + 1).shrinkage
    state = take_state(seen, named, int(named.max()) + 1, shrinkage=shrinkage, is_tuned=True)
    logits = _features(model.head, shown)
    backbone = create_backbone(NETWORK, WEIGHTS).eval().requires_grad_(False)
    method = LayerReadout(LAYERS).eval()
    frozen = [_features(lambda some: method.features(backbone, some), part) for part in (pixels, new)]
    ours = Taught.of(frozen[0], named).detectors()["ours"]

    def told(score: Callable[[Tensor], Tensor], values: Tensor) -> float:
        return auroc(score, values[~outside], values[outside])

    return {
        "ours": told(ours, frozen[1]),
        "ours, tuned network": told(lambda values: state.measure(values)[2], shown),
        "softmax": told(MaxSoftmax.score, logits),
        "energy": told(EnergyBased.score, logits),
    }


def _fitted(pixels: Tensor, labels: Tensor, seed: int) -> ImageClassifier:
    L.seed_everything(seed, verbose=False)
    method = SkipConnectionFinetuning()
    model = ImageClassifier(NETWORK, int(labels.max()) + 1, weights=WEIGHTS, method=method)
    loader = DataLoader(TensorDataset(pixels, labels), 32, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet_trainer(EPOCHS, [PrefixCache()], limit_val_batches=0, accelerator="cpu").fit(model, loader)
    return model.eval()


@torch.inference_mode()
def _features(of: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([of(part) for part in inputs.split(BATCH)]).clone()
