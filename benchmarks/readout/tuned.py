"""Networks that are tuned on a sample of images, and the logits of their heads, the trained one and solved ones."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from nc_finetune import ImageClassifier, ImageData, create_backbone
from nc_finetune.callbacks import PrefixCache, SolveHead
from nc_finetune.functional.temperature import temperature
from nc_finetune.heads import CosineHead, DiscriminantHead
from nc_finetune.methods import (
    FinetuningMethod,
    FullFinetuning,
    LayerReadout,
    SideFinetuning,
    SkipConnectionFinetuning,
)

LAYERS = "later_half"
READOUT = "readout"
FROM_READOUT = " from the readout"
VAL_IMAGES, TEST_IMAGES = 100, 1000
FEW = 20
BLOCKS = ("blocks.4.2", "blocks.5.0")
STEP, MOST_RATES = 10**0.5, 7


@dataclass(frozen=True)
class Tuning:
    """A way to train.

    Attributes:
        method: Builds the method around a key layer.
        rate: The first to try.
        head: Builds the head.
        blocks: Key layers to try.
    """

    method: Callable[[Any], FinetuningMethod]
    rate: float
    head: Callable[[int, int], nn.Module] = CosineHead
    blocks: tuple[str | None, ...] = (None,)


def _begun(method: Callable[[Any], FinetuningMethod]) -> Callable[[Any], FinetuningMethod]:
    return lambda block: LayerReadout(LAYERS, method=method(block))


def _full(_block: Any) -> FinetuningMethod:
    return FullFinetuning()


TUNINGS = {
    "SCL-FT": Tuning(SkipConnectionFinetuning, 1e-2, blocks=BLOCKS),
    "side FT": Tuning(SideFinetuning, 1e-2, blocks=BLOCKS),
    "full FT": Tuning(_full, 3e-4),
    f"SCL-FT{FROM_READOUT}": Tuning(_begun(SkipConnectionFinetuning), 1e-3, DiscriminantHead, BLOCKS),
    f"full FT{FROM_READOUT}": Tuning(_begun(_full), 1e-3, DiscriminantHead),
}


@dataclass(frozen=True)
class Setting:
    """What is trained on.

    Attributes:
        name: Of the data set in results.
        source: As :class:`~nc_finetune.ImageData` takes it.
        pixels: Height and width of the images.
        per_class: Training images a class; fewer where there are no more.
        samples: Training samples.
        epochs: Of each fit.
        tunings: Names of what is trained.
        chosen: Whether rates and key layers are chosen on the first sample; otherwise they are those of 20 images a
            class.
    """

    name: str
    source: str
    pixels: int
    per_class: int
    samples: int
    epochs: int
    tunings: tuple[str, ...] = tuple(TUNINGS)
    chosen: bool = True

    @property
    def title(self) -> str:
        return f"{self.name}, {self.per_class} a class"

    def data(self, sample: int) -> ImageData:
        found = ImageData(
            self.source,
            image_size=self.pixels,
            samples_per_class=self.per_class,
            seed=sample,
            val_size=VAL_IMAGES,
            max_test_images=TEST_IMAGES,
            pixel_cache=_folder("pixels"),
        )
        found.setup("fit")
        return found


@dataclass(frozen=True)
class Cell:
    """What came of one training, by split and head: logits, shape ``(N, K)``, and labels, shape ``(N,)``."""

    logits: dict[str, dict[str, Tensor]]
    labels: dict[str, Tensor]
    told: dict[str, Any]

    def likelihood(self, head: str) -> float:
        """Return the mean log-likelihood of the validation images at the best temperature."""
        logits, labels = self.logits["val"][head].double(), self.labels["val"]
        return -F.cross_entropy(logits / temperature(logits, labels), labels).item()

    def write(self, path: Path) -> None:
        tensors = {f"{split}/{head}": value for split, found in self.logits.items() for head, value in found.items()}
        tensors |= {f"{split}/labels": value for split, value in self.labels.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, partial, {"told": json.dumps(self.told)}
        )
        partial.rename(path)

    @classmethod
    def read(cls, path: Path) -> Cell:
        logits: dict[str, dict[str, Tensor]] = {}
        labels = {}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                split, head = key.split("/", 1)
                if head == "labels":
                    labels[split] = file.get_tensor(key)
                else:
                    logits.setdefault(split, {})[head] = file.get_tensor(key)
            told = json.loads(file.metadata()["told"])
        return cls(logits, labels, told)


def path_of(folder: Path, setting: Setting, sample: int, name: str) -> Path:
    words = f"{setting.name}-{setting.per_class}-{sample}-{name}"
    return folder / f"{words.replace(' ', '_')}.safetensors"


def measure(setting: Setting, sample: int, folder: Path, say: Callable[[str], None]) -> None:
    """Train everything on one sample, but for what is there already."""
    data = setting.data(sample)
    for name in (READOUT, *setting.tunings):
        path = path_of(folder, setting, sample, name)
        if path.exists():
            continue
        if name == READOUT:
            cell = _readout(setting, data)
        else:
            known = path_of(folder, setting if setting.chosen else replace(setting, per_class=FEW), 0, name)
            plain = path_of(folder, setting, 0, name.removesuffix(FROM_READOUT))
            cell = _tuned(setting, data, sample, name, _told(known), _told(plain))
        cell.write(path)
        say(f"{setting.title}, sample {sample}, {name}: {cell.told}")


def _readout(setting: Setting, data: ImageData) -> Cell:
    """Read a frozen network out, from the training images, and from those and the validation images."""
    logits: dict[str, dict[str, Tensor]] = {"val": {}, "test": {}}
    told, labels = {}, {}
    for name, loader in {READOUT: None, "readout of more": _with_validation(data)}.items():
        model = ImageClassifier(_network(), data.num_classes, method=LayerReadout())
        trainer = _trainer(1)
        _quietly(partial(_fit_readout, trainer, model, data, loader))
        for split, images in {"val": data.val_dataloader(), "test": data.test_dataloader()}.items():
            found, labels[split] = _pass(images, partial(_named, name, model), model)
            logits[split] |= found
        told[name] = str(model.method.layers)
    return Cell(logits, labels, told | {"images": len(data.train_set)})


def _named(name: str, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    return {name: model(images)}


def _fit_readout(trainer: L.Trainer, model: ImageClassifier, data: ImageData, loader: Any) -> None:
    if loader is None:
        trainer.fit(model, datamodule=data)
    else:
        trainer.fit(model, loader)


def _with_validation(data: ImageData) -> DataLoader[Any]:
    return DataLoader(ConcatDataset([data.train_set, data.val_set]), batch_size=32)


def _told(path: Path) -> dict[str, Any]:
    return Cell.read(path).told if path.exists() else {}


def _tuned(
    setting: Setting, data: ImageData, sample: int, name: str, known: dict[str, Any], plain: dict[str, Any]
) -> Cell:
    """Train at what is known already; or at each rate around each block, and keep the likeliest validation images.

    The best rate lies at no edge of those that were tried. What begins at a readout has the block of what does not.
    """
    tuning = TUNINGS[name]
    tried: dict[tuple[str | None, float], float] = {}
    best: tuple[float, _Heads] | None = None
    for block in [(known or plain)["key_layer"]] if known or plain else tuning.blocks:
        rates = [known["rate"]] if known else [tuning.rate, tuning.rate / STEP, tuning.rate * STEP]
        while rates:
            heads = _Heads(setting, data, sample, tuning, block, rates.pop(0))
            tried[block, heads.rate] = value = heads.cell("val").likelihood("trained")
            if best is None or value > best[0]:
                best = value, heads
            here = {rate: value for (other, rate), value in tried.items() if other == block}
            if not known and not rates and len(here) < MOST_RATES:
                top = max(here, key=lambda rate: here[rate])
                rates = [edge for edge in (top * STEP, top / STEP) if not _near(edge, here)]
    found = best[1]  # type: ignore[index]
    val, test = found.cell("val"), found.cell("test")
    told = {
        "key_layer": found.block,
        "rate": found.rate,
        "epochs": setting.epochs,
        "images": len(data.train_set),
        "tried": {f"{block or ''} {rate:.2g}".strip(): round(value, 4) for (block, rate), value in tried.items()},
    }
    return Cell(val.logits | test.logits, val.labels | test.labels, told)


def _near(rate: float, tried: Iterable[float]) -> bool:
    return any(abs(rate / other - 1) < 0.1 for other in tried)


class _Heads(L.Callback):
    """Train, and solve heads on what comes out."""

    def __init__(
        self, setting: Setting, data: ImageData, sample: int, tuning: Tuning, block: str | None, rate: float
    ) -> None:
        L.seed_everything(sample, verbose=False)
        self.data, self.block, self.rate = data, block, rate
        self.model = ImageClassifier(
            _network(), data.num_classes, method=tuning.method(block), head=tuning.head, learning_rate=rate
        )
        self.solved: dict[str, Any] = {}
        caches = [PrefixCache(_folder("prefixes"))]
        if self.model.method.first_tuned_layer(self.model.backbone) is None:
            caches = []
        trainer = _trainer(setting.epochs, self, *caches)
        _quietly(lambda: trainer.fit(self.model, datamodule=data))
        self.model.eval()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Solve on the feature, and on layers where the method does not look at them anyway."""
        layers = (None,) if isinstance(pl_module.method, LayerReadout) else (None, LAYERS)
        for chosen in layers:
            SolveHead(chosen, "mean").on_train_end(trainer, pl_module)
            self.solved["feature" if chosen is None else LAYERS] = pl_module.method, pl_module.head
            pl_module.taken_head.put_back()

    def cell(self, split: str) -> Cell:
        """Pass a split through the network, once."""
        loader = self.data.val_dataloader() if split == "val" else self.data.test_dataloader()
        logits, labels = _pass(loader, self._logits, self.model)
        return Cell({split: logits}, {split: labels}, {})

    def _logits(self, images: Tensor) -> dict[str, Tensor]:
        method, _ = self.solved[[*self.solved][-1]]
        features = method.features(self.model.backbone, images)
        given = features[:, -self.model.method.num_features(self.model.backbone) :]
        found = {}
        for name, (_, head) in self.solved.items():
            found[name], found["trained"] = head.parts(features if name == LAYERS else given)
        return found


@torch.inference_mode()
def _pass(
    loader: Iterable[Any], look: Callable[[Tensor], dict[str, Tensor]], model: nn.Module
) -> tuple[dict[str, Tensor], Tensor]:
    model.eval()
    found = [(look(images), labels) for images, labels in loader]
    names = found[0][0]
    return {name: torch.cat([logits[name] for logits, _ in found]) for name in names}, torch.cat([b for _, b in found])


def _network() -> Any:
    return create_backbone("tf_efficientnet_lite0", "package")


def _trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _quietly(run: Callable[[], None]) -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        run()


@lru_cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="readout-tuned-")


def _folder(name: str) -> str:
    return str(Path(_temporary().name) / name)
