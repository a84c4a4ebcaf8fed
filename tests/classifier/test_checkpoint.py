"""A checkpoint alone builds its model, and loggers are told what was trained."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import quick_where
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, TimmBackbone, save_delta
from nc_finetune.files.delta import read_delta
from nc_finetune.heads import CosineHead, SimplexETFHead
from nc_finetune.losses import FocalLoss, PickAllLabelsLoss
from nc_finetune.methods import (
    AdapterTuning,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    ProbeFirst,
    SideFinetuning,
    SkipConnectionFinetuning,
)

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]

METHODS: dict[str, Callable[[], Any]] = {
    "linear_probe": LinearProbe,
    "layer_ft": lambda: LayerFinetuning(["blocks.2", "blocks.3"]),
    "scl_ft_learned": lambda: SkipConnectionFinetuning("blocks.3", "learned", join="normed_feature"),
    "side_ft": lambda: SideFinetuning("blocks.3"),
    "lora": lambda: AdapterTuning(rank=2, options={"lora_alpha": 4}),
    "lp_ft": lambda: ProbeFirst(FullFinetuning(key_layer="blocks.3"), probe_epochs=1),
}
HEADS: dict[str, Callable[..., Any]] = {
    "linear": nn.Linear,
    "cosine": CosineHead,
    "etf": partial(SimplexETFHead, orientation="class_means"),
    "no_bias": partial(nn.Linear, bias=False),
}


def make_model(method: str = "layer_ft", **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = TimmBackbone("test_vit", None, {"img_size": 32})
    return ImageClassifier(backbone, 3, method=METHODS[method](), **options)


def fitted(
    model: ImageClassifier, folder: Path, make_trainer: TrainerFactory, loader: DataLoader[Any], **options: Any
) -> Path:
    trainer = make_trainer(max_epochs=2, **options)
    trainer.fit(model, loader)
    trainer.save_checkpoint(folder / "it.ckpt")
    return folder / "it.ckpt"


def assert_same(one: ImageClassifier, other: ImageClassifier) -> None:
    images = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    one.eval(), other.eval()
    with torch.no_grad():
        assert torch.equal(one(images), other(images))


@pytest.mark.parametrize(
    ("method", "head"),
    quick_where(
        lambda case: case[0] in ("scl_ft_learned", "lora", "lp_ft") or case[1] == "etf",
        [*((method, "linear") for method in METHODS), *(("layer_ft", head) for head in HEADS if head != "linear")],
    ),
)
def test_checkpoint_alone_is_enough(
    method: str, head: str, tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model(method, head=HEADS[head])
    path = fitted(model, tmp_path, make_trainer, make_loader())
    loaded = ImageClassifier.load_from_checkpoint(path)
    assert_same(loaded, model)
    assert loaded.tuned_parameters == model.tuned_parameters
    assert loaded.hparams == model.hparams
    save_delta(model, tmp_path / "its.safetensors")
    save_delta(loaded, tmp_path / "loaded.safetensors")
    assert (
        read_delta(tmp_path / "its.safetensors").base_sha256 == read_delta(tmp_path / "loaded.safetensors").base_sha256
    )
    make_trainer().fit(loaded, make_loader())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precision_of_the_fit_is_kept(
    precision: Any, tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model()
    path = fitted(model, tmp_path, make_trainer, make_loader(), precision=precision)
    assert_same(ImageClassifier.load_from_checkpoint(path), model)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.1, "head_learning_rate": 0.2, "rest_learning_rate": 0.3},
        {"optimizer": partial(torch.optim.SGD, momentum=0.9), "learning_rate": 0.1},
        {"optimizer": torch.optim.Adam, "loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"loss": FocalLoss(gamma=3.0)},
        {"loss": PickAllLabelsLoss()},
    ],
)
def test_training_goes_on_as_it_was(options: dict[str, Any], tmp_path: Path, make_trainer: TrainerFactory) -> None:
    model = make_model(**options)
    trainer = make_trainer()
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "it.ckpt")
    for name, value in options.items():
        found = getattr(loaded, name)
        if name == "optimizer":
            assert found([nn.Parameter(torch.ones(1))]).defaults == value([nn.Parameter(torch.ones(1))]).defaults
        elif name == "loss":
            assert repr(found) == repr(value)
            assert {k: v for k, v in vars(found).items() if k[0] != "_"} == {
                k: v for k, v in vars(value).items() if k[0] != "_"
            }
        else:
            assert found == value
    assert loaded.multilabel == model.multilabel


def test_what_cannot_be_described_is_said_and_may_be_given(
    tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    model = make_model(loss=nn.CrossEntropyLoss(weights))
    path = fitted(model, tmp_path, make_trainer, make_loader())
    with pytest.warns(UserWarning, match="does not say how its loss is built"):
        loaded = ImageClassifier.load_from_checkpoint(path)
    assert_same(loaded, model)
    loaded = ImageClassifier.load_from_checkpoint(path, loss=nn.CrossEntropyLoss(torch.ones(3)), learning_rate=0.5)
    assert torch.equal(loaded.loss.weight, weights)
    assert loaded.learning_rate == 0.5
    model = make_model(head=lambda width, classes: nn.Linear(width, classes))
    path = fitted(model, tmp_path, make_trainer, make_loader())
    with pytest.raises(ValueError, match="does not say how its head is built"):
        ImageClassifier.load_from_checkpoint(path)
    assert_same(ImageClassifier.load_from_checkpoint(path, head=nn.Linear), model)


class Mine(ImageClassifier):
    """Somebody's own, with other arguments."""

    def __init__(self, width: int = 1, rate: float = 0.1) -> None:
        super().__init__("test_resnet", 3, weights=None, learning_rate=rate)
        self.extra = nn.Linear(width, width)
        self.save_hyperparameters()


class Passing(ImageClassifier):
    """Somebody's own, which passes all on."""

    def __init__(self, *args: Any, bonus: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        self.bonus = bonus


def test_own_classes_come_back_with_their_own_arguments(
    tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = Mine(4, rate=0.01)
    path = fitted(model, tmp_path, make_trainer, make_loader())
    loaded = Mine.load_from_checkpoint(path)
    assert_same(loaded, model)
    assert (loaded.extra.in_features, loaded.learning_rate) == (4, 0.01)
    passing = Passing(TimmBackbone("test_resnet", None), 3, head_learning_rate=0.5, bonus=3)
    path = fitted(passing, tmp_path, make_trainer, make_loader())
    again = Passing.load_from_checkpoint(path)
    assert_same(again, passing)
    assert (again.head_learning_rate, again.bonus) == (0.5, 3)


def test_classes_of_strangers_are_neither_unpickled_nor_built(tmp_path: Path) -> None:
    torch.save({"nc_finetune": nn.Linear(1, 1), "state_dict": {}}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="could run code"):
        ImageClassifier.load_from_checkpoint(tmp_path / "pickle.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of an ImageClassifier"):
        ImageClassifier.load_from_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError):
        ImageClassifier.load_from_checkpoint(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("part", ["loss", "optimizer"])
def test_foreign_loss_and_optimizer_need_trust(
    part: str, tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    path = fitted(make_model(), tmp_path, make_trainer, make_loader())
    content = torch.load(path, weights_only=True)
    content["nc_finetune_training"]["arguments"][part] = {"class_path": "subprocess.Popen", "init_args": {"args": "x"}}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"subprocess\.Popen is outside"):
        ImageClassifier.load_from_checkpoint(path)


def test_loggers_get_flat_hyperparameters(
    tmp_path: Path, make_trainer: TrainerFactory, make_loader: LoaderFactory
) -> None:
    model = make_model("scl_ft_learned", head=nn.Linear)
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board", default_hp_metric=False)]
    make_trainer(logger=loggers).fit(model, make_loader())
    for name in ("csv", "board"):
        written = yaml.safe_load((tmp_path / name / "version_0" / "hparams.yaml").read_text(encoding="utf-8"))
        assert written == dict(model.hparams)
    expected = {
        "backbone": "test_vit",
        "weights": None,
        "num_classes": 3,
        "method": "scl_ft",
        "method/key_layer": "blocks.3",
        "method/scale": "learned",
        "head": "Linear",
        "loss": "CrossEntropyLoss",
        "optimizer": "AdamW",
        "learning_rate": 3e-3,
        "head_learning_rate": 1e-3,
        "backbone/options/img_size": 32,
    }
    assert expected.items() <= dict(model.hparams).items()
    assert all(isinstance(value, (bool, int, float, str, type(None))) for value in model.hparams.values())


def test_objects_and_copies_do_not_disturb_hyperparameters() -> None:
    model = make_model("lp_ft", head=lambda width, classes: nn.Linear(width, classes), loss=nn.CrossEntropyLoss())
    assert copy.deepcopy(model).hparams == model.hparams
    assert {name for name in model.hparams if name.startswith("method")} >= {"method", "method/probe_epochs"}
