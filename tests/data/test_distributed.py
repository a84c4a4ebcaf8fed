"""Two processes see every image once and come to what one comes to, whatever the sizes."""

import json
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing
from broken_images import write_broken_folder

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1
from nc_finetune.losses import PickAllLabelsLoss

RANKS = 2
DIGITS = {"source": "sklearn:digits", "train_share": 48 / 1731, "val_size": 31, "test_size": 35}
# Neither the images nor what is left of them divide by the batch or by two.
FOLDER = {"val_size": 17, "test_size": 15, "on_bad_image": "skip"}


def write_folders(folder: Path) -> None:
    """Write images of which some are broken, and the same with one label or two each."""
    broken = write_broken_folder(folder / "messy", 61)
    good = sorted({*(folder / "messy").rglob("*.*")} - {*broken})
    (folder / "tagged").mkdir()
    lines = ["file,tags"]
    for number, image in enumerate(good):
        (folder / "tagged" / image.name).write_bytes(image.read_bytes())
        lines.append(f"{image.name},{('sea', 'sky', 'sea|sky', 'sun')[number % 4]}")
    (folder / "tagged/labels.csv").write_text("\n".join(lines) + "\n")


def fit(
    batch_size: int, learning_rate: float, data_options: dict[str, Any] = DIGITS, **options: Any
) -> dict[str, float]:
    """Train on 48 images, validate on 31, test on 35; return what was logged, NC1 included."""
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    data = ImageData(**data_options, image_size=16, batch_size=batch_size)
    rates = {"learning_rate": learning_rate, "head_learning_rate": learning_rate}
    loss = PickAllLabelsLoss() if data.multi_label else None
    model = ImageClassifier("test_resnet", data.num_classes, weights=None, loss=loss, **rates)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    measure = LayerwiseNC1(["layer2.0", "penultimate"], split=["train", "val"])
    trainer = L.Trainer(max_epochs=2, callbacks=[measure], enable_checkpointing=False, **quiet, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data)
        logged = {name: value.item() for name, value in trainer.callback_metrics.items() if name != "train/loss"}
        (tested,) = trainer.test(model, datamodule=data, verbose=False)
    return {**logged, **tested, **{name: value for name, value in measure.history[-1].items() if "nc1" in name}}


def run_rank(rank: int, port: int, folder: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    elastic = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**where, **elastic}.items()})
    options = {"strategy": "ddp", "devices": RANKS}
    found = {"still": fit(8, 0.0, **options), "learning": fit(8, 0.3, **options)}
    for name in ("messy", "tagged"):
        found[name] = fit(8, 0.0, {**FOLDER, "source": f"{folder}/{name}"}, **options)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_folders(folder)
    return folder


@pytest.fixture(scope="module")
def together(folder: Path) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The server imports everything once; what it forks starts at once.
    torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        run_rank, (port, str(folder)), nprocs=RANKS, start_method="forkserver"
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_measures_are_those_of_one_process(together: list[Any]) -> None:
    alone = fit(16, 0.0)
    assert {"val/accuracy", "val/balanced_accuracy", "nc1/penultimate", "val/nc1/layer2.0", "test/loss"} <= set(alone)
    for measured in together:
        assert measured["still"] == pytest.approx(alone, rel=1e-5)


def test_training_comes_to_what_one_process_with_twice_the_batch_comes_to(together: list[Any]) -> None:
    alone = fit(16, 0.3)
    assert alone["val/loss"] != pytest.approx(fit(16, 0.0)["val/loss"], rel=0.02)
    for measured in together:
        assert measured["learning"] == pytest.approx(alone, rel=2e-3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.slow
def test_broken_images_are_left_out_by_each_process(folder: Path, together: list[Any]) -> None:
    alone = fit(16, 0.0, {**FOLDER, "source": f"{folder}/messy"})
    assert {"val/accuracy", "nc1/penultimate", "val/nc1/penultimate", "test/accuracy"} <= set(alone)
    data = ImageData(str(folder / "messy"), val_size=17, test_size=15)
    assert sum(Path(str(row["path"])).name.startswith("bad") for row in _encoded(data, "val")) > 0
    for measured in together:
        assert measured["messy"] == pytest.approx(alone, rel=1e-5)


def _encoded(data: ImageData, split: str) -> list[dict[str, Any]]:
    images = data.images(split)
    return [images.table.encoded(row) for row in images.indices]


def test_several_labels_are_measured_alike(folder: Path, together: list[Any]) -> None:
    alone = fit(16, 0.0, {**FOLDER, "source": f"{folder}/tagged"})
    assert 0 < alone["val/average_precision"] < 1
    for measured in together:
        assert measured["tagged"] == pytest.approx(alone, rel=1e-5, nan_ok=True)
