"""Every kind of bad input with what is said of it; ``python tests/test_bad_inputs.py`` prints the table.

Each case hands something bad to the library as a user would, and names a part of the one message that must come.
"""

import os
import pickle
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from broken_images import BROKEN, ODD, encoded, photo
from made_up_images import make_rows, write_idx, write_images, write_parquet

from nc_finetune import ImageClassifier, ImageData, load_delta, save_delta
from nc_finetune._common.trust import only_known_classes
from nc_finetune.cli.recipes import find_recipe
from nc_finetune.data import UnlabelledFolder
from nc_finetune.data._pixels.transforms import DecodeAndResize
from nc_finetune.deployment.predict import predict_folder
from nc_finetune.results.result import read_result
from nc_finetune.run.grid import read_grid

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
Act = Callable[[Path], Any]
# What may be raised: the command prints each of these in one line, without a traceback.
CLEAR = (ValueError, TypeError, OSError, ImportError)


def read(source: Path, **options: Any) -> None:
    """Go through a source as training would."""
    data = ImageData(str(source), **{"image_size": 16, "val_size": 2, "test_size": 2, **options})
    for split in ("train", "val", "test"):
        list(data.eval_dataloader(split))


def pets(folder: Path) -> Path:
    write_images(folder, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)), value=90)
    return folder


def with_image(content: bytes, ending: str) -> Act:
    """Put one image among good ones."""

    def act(folder: Path) -> None:
        (pets(folder) / f"cat/bad.{ending}").write_bytes(content)
        read(folder)

    return act


def files(*names: str) -> Act:
    """Read a folder of images with these names."""

    def act(folder: Path) -> None:
        write_images(folder, *names)
        read(folder)

    return act


def table(content: str | bytes) -> Act:
    """Read a folder of images with this table of labels."""

    def act(folder: Path) -> None:
        write_images(folder, "1.png", "2.png", "a/same.png", "b/same.png")
        (folder / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        read(folder)

    return act


def rows(labels: list[Any], feature: Any = None, **columns: str) -> Act:
    """Read a parquet file with these labels."""

    def act(folder: Path) -> None:
        write_parquet(folder / "train.parquet", labels, feature, **columns)
        read(folder)

    return act


def written(name: str, content: bytes) -> Act:
    """Read a folder with this file alone."""

    def act(folder: Path) -> None:
        (folder / name).write_bytes(content)
        read(folder)

    return act


def options(**changes: Any) -> Act:
    """Ask for something of a good folder."""
    return lambda folder: read(pets(folder), **changes)


def without_image(folder: Path) -> None:
    write_parquet(folder / "train.parquet", [0, 1] * 4)
    found = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"))["train"]
    emptied = found.map(lambda row, number: {"image": None if number == 3 else row["image"]}, with_indices=True)
    emptied.to_parquet(str(folder / "train.parquet"))
    read(folder)


def gone(folder: Path) -> None:
    data = ImageData(str(pets(folder)), image_size=16, val_size=2, test_size=2)
    _ = data.data
    shutil.rmtree(folder / "cat")
    list(data.eval_dataloader("train"))


def dangling(folder: Path) -> None:
    (pets(folder) / "cat/link.png").symlink_to("nowhere.png")
    read(folder)


def two_kinds(folder: Path) -> None:
    write_parquet(folder / "train.parquet", [0, 1])
    (folder / "train.arrow").write_bytes(b"")
    read(folder)


def other_columns(folder: Path) -> None:
    datasets.DatasetDict({"train": make_rows([0, 1]), "test": make_rows([0, 1], label="class")}).save_to_disk(folder)
    read(folder)


def other_classes(folder: Path) -> None:
    features = [datasets.ClassLabel(names=names) for names in (["cat", "dog"], ["dog", "cat"])]
    splits = {name: make_rows([0, 1], feature) for name, feature in zip(("train", "test"), features, strict=True)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    read(folder)


def cut_idx(folder: Path) -> None:
    write_idx(folder, 5)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    read(folder)


def split_file(content: str) -> Act:
    def act(folder: Path) -> None:
        path = folder / "splits.json"
        path.write_text(content)
        read(pets(folder / "pets"), split_file=str(path))

    return act


def splits_of_others(folder: Path) -> None:
    path = str(folder / "splits.json")
    read(pets(folder / "pets"), split_file=path)
    (folder / "pets/cat/0.png").write_bytes(encoded(photo()))
    (folder / "pets/cat/1.png").write_bytes(encoded(photo(seed=1)))
    for number in range(2, 5):
        (folder / f"pets/cat/{number}.png").unlink()
    for number in range(5):
        (folder / f"pets/dog/{number}.png").unlink()
    write_images(folder / "pets", "dog/7.png", value=3)
    read(folder / "pets", split_file=path)


def model(**changes: Any) -> ImageClassifier:
    return ImageClassifier("test_resnet", 2, weights=None, **changes)


def weights(content: Any, name: str = "theirs.pt") -> Act:
    def act(folder: Path) -> None:
        torch.save(content, folder / name)
        ImageClassifier("test_resnet", 2, weights=str(folder / name))

    return act


class Executes:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def damaged_delta(folder: Path) -> None:
    path = folder / "delta.safetensors"
    save_delta(model(), path)
    path.write_bytes(path.read_bytes()[:-100])
    load_delta(path, model())


def delta_of_another_base(folder: Path) -> None:
    path = folder / "delta.safetensors"
    torch.manual_seed(0)
    save_delta(model(), path)
    load_delta(path, model())


def checkpoint(content: Any) -> Act:
    def act(folder: Path) -> None:
        torch.save(content, folder / "theirs.ckpt")
        predict_folder(folder / "theirs.ckpt", pets(folder / "pets"), folder / "out.csv")

    return act


GRID: dict[str, Any] = {
    "backbones": [{"name": "test_resnet", "weights": None}],
    "datasets": [{"source": "sklearn:digits"}],
    "methods": [{"method": "LinearProbe", "learning_rates": [1e-3]}],
}


def grid(**changes: Any) -> Act:
    return grid_text(yaml.safe_dump({**GRID, **changes}))


def grid_text(text: str) -> Act:
    def act(folder: Path) -> None:
        (folder / "grid.yaml").write_text(text)
        with only_known_classes(trust=False):
            read_grid(folder / "grid.yaml")

    return act


def result(text: str) -> Act:
    def act(folder: Path) -> None:
        (folder / "run.json").write_text(text)
        read_result(folder / "run.json")

    return act


IMAGES: dict[str, tuple[Act, str]] = {
    f"image: {kind}": (
        with_image(make(), ending),
        rf"the image .* in row \d+ does not decode: .*(?:{message}).*; repair",
    )
    for kind, (make, ending, message) in BROKEN.items()
} | {
    "image: a row of a table without one": (without_image, r"in row 3 does not decode: there is no image; repair"),
    "image: deleted after the folder was read": (gone, r"does not decode: .*No such file"),
    "image: a link to nowhere": (dangling, r"link\.png in row \d+ does not decode: .*No such file"),
    "image: of an unlabelled folder": (
        lambda folder: list(UnlabelledFolder(_one_broken(folder), ["cat", "dog"], image_size=16).predict_dataloader()),
        r"the image .*bad\.jpg does not decode: the file is empty; repair or remove it",
    ),
}


def _one_broken(folder: Path) -> Path:
    (folder / "bad.jpg").touch()
    return folder


FOLDERS: dict[str, tuple[Act, str]] = {
    "folder: not there": (lambda folder: read(folder / "nowhere"), "no folder of images or tables at"),
    "folder: a file of another kind": (
        lambda folder: read(_one_broken(folder) / "bad.jpg"),
        "is a file; give the folder that it is in",
    ),
    "folder: empty": (read, "holds no parquet or arrow files and no folders of images"),
    "folder: images without folders of classes": (files("1.png", "2.png"), "expected one folder a class"),
    "folder: one class": (files("cat/1.png", "cat/2.png"), r"has one class only \('cat'\)"),
    "folder: two names of one split": (
        files("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "dev/cat/3.png"),
        "both name the val split; rename or remove one",
    ),
    "folder: no train split": (files("test/cat/1.png", "val/cat/1.png"), "has no train split, only"),
    "folder: a split without images": (
        lambda folder: ((folder / "test").mkdir(), files("train/cat/1.png", "train/dog/1.png")(folder)),
        "no images in the folders of .*test",
    ),
    "folder: unknown built-in set": (lambda _: ImageData("sklearn:iris").class_names, "unknown built-in data"),
}
TABLES: dict[str, tuple[Act, str]] = {
    "table of labels: empty": (table(""), "is empty: expected a line with the names of columns"),
    "table of labels: a line too short": (table("file,label\n1.png,cat\n2.png\n"), "line 3: 1 cells where"),
    "table of labels: an image twice": (table("file,label\n1.png,cat\n1.png,dog\n"), r"'1\.png' is there twice"),
    "table of labels: no label": (table("file,label\n1.png,\n2.png, \n"), "the train split has no labels"),
    "table of labels: a missing image": (table("file,label\n1.png,cat\n9.png,dog\n"), r"'9\.png' is not below"),
    "table of labels: ../": (table("file,label\n../2.png,cat\n1.png,dog\n"), "is not below .*; name files relative"),
    "table of labels: absolute path": (table("file,label\n/etc/passwd,cat\n1.png,dog\n"), "'/etc/passwd' is not below"),
    "table of labels: a name that fits two images": (table("file,label\nsame,cat\n1.png,dog\n"), "'same' may be"),
    "table of labels: no column of images": (table("photo,label\n1.png,cat\n"), "cannot tell the image column"),
    "table of labels: no column of labels": (table("file,breed\n1.png,cat\n"), "cannot tell the label column"),
    "table of labels: not UTF-8": (table("file,label\n1.png,Bär\n".encode("latin-1")), "is not UTF-8"),
    "table: damaged parquet": (written("train.parquet", b"PAR1 nothing"), "cannot be read: .*; replace those"),
    "table: damaged arrow": (written("train.arrow", b"nothing"), "cannot be read: .*; replace those"),
    "table: damaged archive": (written("train.tar", b"no archive"), "cannot be read: .*; replace those"),
    "table: parquet beside arrow": (two_kinds, "holds arrow and parquet files; keep one kind"),
    "table: a split lacks the column": (other_columns, "the test split has no column 'label'"),
    "table: splits with other classes": (other_classes, "every split must declare the same classes in the same order"),
    "table: labels of -2": (
        rows([0, -2, 1, 0], datasets.Value("int64")),
        r"labels must be strings or lie in \[0, inf\), the train split has -2",
    ),
    "table: labels that are numbers with a fraction": (
        rows([0.5, 1.5], datasets.Value("float32")),
        r"the train split has 0\.5; leave rows without a label out",
    ),
    "table: all labels are missing": (
        rows([None, None], datasets.Value("string")),
        "the train split has no labels; there is nothing to learn from",
    ),
    "idx files: cut off": (cut_idx, "announces 3,920 bytes and holds 3,919; download it again"),
    "CIFAR: Python edition (pickles)": (
        lambda folder: _cifar_pickles(folder),
        "pickles, which are never loaded; get the",
    ),
}


def _cifar_pickles(folder: Path) -> None:
    before = os.environ.get("NC_FINETUNE_DATA")
    os.environ["NC_FINETUNE_DATA"] = str(folder)
    (folder / "cifar10").mkdir()
    (folder / "cifar10/data_batch_1").write_bytes(pickle.dumps({b"data": b""}))
    try:
        _ = ImageData("cifar10").class_names
    finally:
        os.environ.pop("NC_FINETUNE_DATA")
        if before is not None:
            os.environ["NC_FINETUNE_DATA"] = before


SPLITS: dict[str, tuple[Act, str]] = {
    "splits: more images a class than there are": (
        options(samples_per_class=20),
        r"20 images a class were asked for, class '\w+' has 4; ask for fewer",
    ),
    "splits: all held out": (options(val_size=8), "val_size: cannot split 8 of 8 images off"),
    "splits: a share above one": (options(train_share=1.5), r"train_share must lie in \(0, 1\], got 1\.5"),
    "splits: a fold that is not there": (options(fold=5), "fold must lie in"),
    "splits: damaged file": (split_file("{"), r"splits\.json is no file of splits.*delete it to split anew"),
    "splits: file of other images": (splits_of_others, "are not in the source, the first"),
}
MODELS: dict[str, tuple[Act, str]] = {
    "weights: a .pt that would run code": (
        weights({"conv1.weight": Executes()}),
        r"not a state dict of tensors alone \(it names posix.mkdir",
    ),
    "weights: of another network": (weights({"other": torch.zeros(2)}), "theirs.pt"),
    "weights: not there": (
        lambda folder: ImageClassifier("test_resnet", 2, weights=str(folder / "nowhere.pt")),
        "nowhere.pt",
    ),
    "checkpoint: would run code": (checkpoint({"state_dict": {}, "epoch": Executes()}), "it names posix.mkdir"),
    "checkpoint: of another program": (checkpoint({"state_dict": {}}), "is no checkpoint of an ImageClassifier"),
    "delta: damaged": (damaged_delta, r"is damaged or no \.safetensors file"),
    "delta: for other weights": (delta_of_another_base, "the delta belongs to another base"),
}
RECIPES: dict[str, tuple[Act, str]] = {
    "recipe: unknown name": (lambda _: find_recipe("digits/scl"), "digits/scl"),
    "grid: no YAML": (grid_text("backbones: [{"), "is not a benchmark grid"),
    "grid: unknown key": (grid(epoch=3), "epoch"),
    "grid: an empty list": (grid(seeds=[]), "seeds of a grid must not be empty"),
    "grid: unknown method": (grid(methods=[{"method": "LinearProb", "learning_rates": [1e-3]}]), "'LinearProbe'"),
    "grid: unknown backbone": (grid(backbones=[{"name": "resnet51", "weights": None}]), "resnet51"),
    "grid: unknown key layer": (
        grid(backbones=[{"name": "test_resnet", "weights": None, "key_layer": "layer9.0"}]),
        "unknown key layer 'layer9.0'",
    ),
    "grid: unknown loss": (grid(losses=[{"loss": "FocalLos"}]), "unknown loss 'FocalLos'; did you mean 'FocalLoss'"),
    "grid: a class of another package": (
        grid(methods=[{"method": "os.system", "learning_rates": [1e-3]}]),
        "the recipe names os.system, which is outside .*; pass --trust if you trust its author",
    ),
    "grid: the same run twice": (grid(seeds=[0, 0]), "cells that are the same"),
    "grid: YAML that builds objects": (
        grid_text("seeds: !!python/object/apply:os.mkdir [executed]\n"),
        "is not a benchmark grid",
    ),
    "result: no JSON": (result("{"), "is not valid JSON"),
    "result: of another version": (result('{"schema_version": 99}'), "has schema version 99, this version reads 1"),
    "result: unknown fields": (result('{"schema_version": 1, "colour": 1}'), "is not a benchmark result"),
}
CASES = {**IMAGES, **FOLDERS, **TABLES, **SPLITS, **MODELS, **RECIPES}


def message_of(act: Act, folder: Path) -> str:
    """Return what is said, in one line; nothing where nothing was wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            act(folder)
        except CLEAR as error:
            return f"{type(error).__name__}: {error}".replace(str(folder), "…").replace("\n", " ")
    return ""


@pytest.mark.parametrize("kind", CASES)
def test_what_is_said_of_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, message = CASES[kind]
    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    said = message_of(act, folder)
    assert re.search(message, said), said or "nothing was said"
    assert not (tmp_path / "executed").exists()


def test_there_are_at_least_thirty_kinds() -> None:
    assert len(CASES) >= 30


def print_table() -> None:
    """Print all kinds with their messages as a table of markdown, and the kinds that are read."""
    datasets.disable_progress_bars()
    print("| bad input | what is said |\n| --- | --- |")  # noqa: T201
    for kind, (act, _) in CASES.items():
        with tempfile.TemporaryDirectory() as name:
            print(f"| {kind} | {message_of(act, Path(name)).replace('|', '&#124;')} |", flush=True)  # noqa: T201
    print("\n| odd image | what is made of it |\n| --- | --- |")  # noqa: T201
    for kind, (make, _) in ODD.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = DecodeAndResize(16)({"bytes": make(), "path": None})
        middle = ", ".join(map(str, image[:, 8, 8].tolist()))
        print(f"| {kind} | read; the middle pixel is ({middle}) |")  # noqa: T201


if __name__ == "__main__":
    sys.exit(print_table())
