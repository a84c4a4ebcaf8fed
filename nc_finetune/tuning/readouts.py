"""The first answers: readouts of frozen networks, at one image size and then at others."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nc_finetune.backbones import Backbone
from nc_finetune.classifier import ImageClassifier
from nc_finetune.data import ImageData, TrainingFold, training_folds
from nc_finetune.doubt import DoubtState, take_state
from nc_finetune.doubt.state import PREFIX
from nc_finetune.functional.readout import SolvedHead, choose_columns, solve_head
from nc_finetune.heads import set_width_
from nc_finetune.methods import LayerReadout
from nc_finetune.methods.readout import LayerGroup
from nc_finetune.selection.features import method_features, subset_batches
from nc_finetune.tuning.folder import Step

_PREFERRED = "later_half"
_MOST_BYTES = 8 * 10**9
FOLDS, TURNS = 3, 20  # by which everything is judged alike, and by which a readout of few images is
_MOST_IN_TURN, _FEW = 1000, 400
_SMALLEST, _FIRST, _STEP, _GROWTH = 64, 128, 32, 1.5


@dataclass(frozen=True)
class Readout:
    """A readout that was solved on all training images.

    Attributes:
        image_size: Height and width.
        layers: The word for them.
        shrinkage: Of the covariance.
        weight: Shape ``(K, D)``, float32.
        bias: Shape ``(K,)``.
        logits: Of each training image by a readout of nearly all others, in the order of the data, shape ``(N, K)``:
            up to 1,000 images one of each class is left out at a time, or a few, of more a single image, or where there
            are groups a fold. ``nan`` for an image that does not decode, or is the only one of its class.
        fold_logits: Those by what the other folds teach; ``nan`` for images that no fold holds out.
        seconds: Of the pass.
        by_layers: Leave-one-out accuracy by word, where several were compared.
        doubt: Statistics of the training images, where they were asked for.
    """

    image_size: int
    layers: LayerGroup
    shrinkage: float
    weight: Tensor
    bias: Tensor
    logits: Tensor
    fold_logits: Tensor
    seconds: float
    by_layers: dict[str, float]
    doubt: DoubtState | None = field(default=None, repr=False)

    def step(self) -> Step:
        """Return what is kept of it."""
        facts = {name: getattr(self, name) for name in ("image_size", "layers", "shrinkage", "seconds", "by_layers")}
        tensors = {name: getattr(self, name) for name in ("weight", "bias", "logits", "fold_logits")}
        known = {} if self.doubt is None else self.doubt.state_dict()
        return Step(facts, tensors | {f"{PREFIX}{name}": value for name, value in known.items()})

    @classmethod
    def of_step(cls, step: Step) -> Readout:
        """Return what :meth:`step` kept."""
        own = {name: value for name, value in step.tensors.items() if not name.startswith(PREFIX)}
        fields: dict[str, Any] = {**step.facts, **own}
        return cls(**fields, doubt=DoubtState.of_state(step.tensors, len(own["bias"])))

    def build(self, backbone: Backbone, num_classes: int) -> ImageClassifier:
        """Return the classifier.

        Args:
            backbone: The network that was read out.
            num_classes: K.
        """
        model = ImageClassifier(backbone, num_classes, method=LayerReadout(self.layers))
        head: Any = model.head
        set_width_(head, self.weight.shape[1])
        with torch.no_grad():
            head.weight.copy_(self.weight)
            head.bias.copy_(self.bias)
        model.doubt = deepcopy(self.doubt)
        return model.to(next(backbone.parameters()).device).eval()


def read_out(
    backbone: Backbone,
    data: ImageData,
    folds: Sequence[TrainingFold] = (),
    groups: Sequence[str] | None = None,
    first: Callable[[Readout], None] = lambda readout: None,
    *,
    statistics: bool = False,
) -> Readout:
    """Solve a readout on all training images in one pass, and on those outside of each fold.

    The preferred layers are solved first, and handed over at once; then others are compared, and folds solved.

    Args:
        backbone: The network, on the device to compute on.
        data: The images.
        folds: Of the training images.
        groups: The group of each training image, of which none judges the others.
        first: Called with the readout of the preferred layers, its logits by leaving one image out.
        statistics: Take statistics of the training images, too, by which the model knows its doubts.

    Raises:
        ValueError: If there are too many images to keep their features, none decodes, features are not finite, no class
            has two images, or images of each class are all the same.
    """
    start = time.perf_counter()
    method, columns = _layers(backbone)
    size = 4 * method.num_features(backbone) * len(data.images("train"))
    if size > _MOST_BYTES:
        raise ValueError(
            f"features of {len(data.images('train')):,} images take {size / 1e9:.0f} GB, and up to"
            f" {_MOST_BYTES / 1e9:.0f} GB of them are kept in memory; take fewer images, or fit a readout of so many by"
            " a recipe (nc-finetune fit ... methods/readout)"
        )
    batches = subset_batches(data, "train")
    try:
        given = method_features(method, backbone, batches)
    except (RuntimeError, ValueError) as error:
        if len(good_places(data)):
            raise
        raise ValueError(f"no training image of {data.source} decodes; look by nc-finetune data check") from error
    features, labels = (part.cpu() for part in given)
    seconds = time.perf_counter() - start
    if not features.isfinite().all():
        raise ValueError(
            f"features of {backbone.name} are not finite for images of {data.image_size} pixels; choose other weights,"
            " or look for broken images"
        )
    preferred = _PREFERRED if _PREFERRED in columns else next(iter(columns))
    places = good_places(data)
    unknown = torch.full((len(data.images("train")), data.num_classes), torch.nan)

    def answer(name: str, head: SolvedHead, by_layers: dict[str, float]) -> Readout:
        logits = unknown.clone()
        logits[places] = head.logits.float().cpu()
        return Readout(
            image_size=data.image_size,
            layers=cast(LayerGroup, name),
            shrinkage=head.shrinkage,
            weight=head.weight.float().cpu(),
            bias=head.bias.float().cpu(),
            logits=logits,
            fold_logits=unknown.clone(),
            seconds=seconds,
            by_layers=by_layers,
        )

    with warnings.catch_warnings():  # the check of the data has said so
        warnings.filterwarnings("ignore", message="there (is no sample of class|are too few samples)")
        head = solve_head(features[:, columns[preferred]], labels, data.num_classes)
        first(answer(preferred, head, {}))
        choice = choose_columns(features, labels, data.num_classes, columns, preferred, solved=head)
        features = features[:, columns[choice.name]]
        head = choice.head or solve_head(features, labels, data.num_classes)
        found = answer(choice.name, head, choice.accuracies)
        logits, fold_logits = found.logits, found.fold_logits

        def judge(into: Tensor, held_out: Sequence[int]) -> None:
            held = torch.isin(places, torch.tensor(held_out))
            others = labels[~held].bincount(minlength=data.num_classes)
            if not held.any() or others.max() < 2:
                return
            inside = solve_head(features[~held], labels[~held], data.num_classes, shrinkage=head.shrinkage)
            held &= others[labels] > 0  # of a class that the others do not know nothing is judged
            into[places[held]] = (features[held].double() @ inside.weight.T + inside.bias).float().cpu()

        for fold in folds:
            judge(fold_logits, fold.held_out)
        if groups is not None:
            logits = fold_logits.clone()
        # With one image less than the others a class is a little further from every image: of few images leaving one
        # out understates the accuracy, at twenty a class by up to 0.7 points.
        if folds and len(labels) <= _MOST_IN_TURN:
            for fold in training_folds(data, most_folds(len(labels)), groups=groups):
                judge(logits, fold.held_out)
        doubt = None
        if statistics:
            apart = None if groups is None else _numbered(folds, places)
            known = logits[places]
            doubt = take_state(features, labels, data.num_classes, shrinkage=head.shrinkage, logits=known, folds=apart)
    return replace(found, logits=logits, doubt=doubt)


def most_folds(number: int) -> int:
    """Return by how many folds at the most a readout of some images is judged, where it is by folds.

    Args:
        number: Of images that decode.

    Example:
        >>> most_folds(400), most_folds(1000), most_folds(1001)
        (20, 10, 3)
    """
    if number > _MOST_IN_TURN:
        return FOLDS
    return TURNS if number <= _FEW else TURNS // 2


def _numbered(folds: Sequence[TrainingFold], places: Tensor) -> Tensor:
    """Return the fold that holds out each of some places; -1 where none does."""
    found = torch.full((len(places),), -1)
    for number, fold in enumerate(folds):
        found[torch.isin(places, torch.tensor(fold.held_out))] = number
    return found


def _layers(backbone: Backbone) -> tuple[LayerReadout, dict[str, Tensor]]:
    """Return a readout and the columns of its layers by word; the last feature alone, where others are no vectors."""
    method = LayerReadout()
    try:
        return method, method.columns(backbone)
    except ValueError:
        method = LayerReadout("penultimate")
        return method, {"penultimate": method.columns(backbone)["given"]}


def good_places(data: ImageData) -> Tensor:
    """Return the places in the training split of the images that have not failed to decode so far."""
    images = data.images("train")
    bad = images.bad
    return torch.tensor([place for place, row in enumerate(images.indices) if bad is None or not bad[row]])


def log_likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-likelihood of the label of each image, shape ``(N,)``; ``nan`` where logits are."""
    return -F.cross_entropy(logits, labels, reduction="none")


def image_sizes(backbone: Backbone, pixels: int) -> list[int]:
    """Return the image sizes to try, from the first on.

    The first is that of the images, between 64 and 128 pixels; then half as much again each time, up to that of the
    pre-training; of a transformer the nearest that its patches fill. A network that takes one size alone has that.

    Args:
        backbone: The network.
        pixels: Of the shorter side of a typical image.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> image_sizes(TimmBackbone("test_efficientnet", weights=None), 500)
        [128, 160]
    """
    own = backbone.preprocessing.image_size
    first = min(own, max(_SMALLEST, min(_FIRST, -(-pixels // _STEP) * _STEP)))
    sizes = [first]
    while sizes[-1] < own:
        sizes.append(min(own, round(sizes[-1] * _GROWTH / _STEP) * _STEP))
    nearest = dict.fromkeys(map(backbone.nearest_size, sizes))
    return [size for size in nearest if takes_size(backbone, size)] or [own]


@torch.inference_mode()
def takes_size(backbone: Backbone, size: int) -> bool:
    """Tell whether a network takes images of a height and width."""
    backbone.eval()
    device = next(backbone.parameters()).device
    try:
        backbone(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


def typical_side(data: ImageData) -> int:
    """Return the median of the shorter side of some training images, in pixels; 0 where none can be read."""
    images = data.images("train")
    rows = images.indices[:: max(1, len(images) // 20)]
    sides = sorted(side for row in rows if (side := _shorter_side(images.table.encoded(row))))
    return sides[len(sides) // 2] if sides else 0


def _shorter_side(encoded: dict[str, Any]) -> int:
    try:
        with Image.open(io.BytesIO(encoded["bytes"]) if encoded["bytes"] else encoded["path"]) as image:
            return int(min(image.size))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0
