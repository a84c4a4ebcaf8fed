"""Images without labels: what has labels is trained on, the rest is for predicting, and this is said."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from made_up_images import make_rows, write_images, write_parquet
from torch import Tensor

from nc_finetune import ImageClassifier, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PredictionWriter
from nc_finetune.data import ImageData, UnlabelledSource
from nc_finetune.deployment.predict import predict_folder
from nc_finetune.errors import DataWarning

STRING = datasets.Value("string")
# Each writes 20 labelled images, 4 images of a test split without labels, and returns the source.
Writer = Callable[[Path, pytest.MonkeyPatch], str]


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    found = {"train": make_rows([0, 1] * 10), "test": make_rows([-1] * 4)}
    monkeypatch.setattr(datasets, "load_dataset", {"some/pets": datasets.DatasetDict(found)}.get)
    return "some/pets"


def nulls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_parquet(folder / "train.parquet", ["cat", "dog"] * 10, STRING)
    write_parquet(folder / "test.parquet", [None] * 4, STRING)
    return str(folder)


def no_column(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_parquet(folder / "train.parquet", ["cat", "dog"] * 10, STRING)
    make_rows([0] * 4).remove_columns("label").to_parquet(str(folder / "test.parquet"))
    return str(folder)


def kaggle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_images(
        folder, *(f"train/{number}.png" for number in range(20)), *(f"test/{number}.png" for number in range(4))
    )
    lines = [f"{number},{('cat', 'dog')[number % 2]}" for number in range(20)]
    (folder / "train.csv").write_text("\n".join(["id,label", *lines]))
    (folder / "test.csv").write_text("\n".join(["id", *map(str, range(4))]))
    (folder / "sample_submission.csv").write_text("id,label\n0,cat\n")
    return str(folder)


def flat_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("cat", "dog"):
        write_images(folder, *(f"train/{name}/{number}.png" for number in range(10)))
    write_images(folder, *(f"test/{number}.png" for number in range(4)))
    return str(folder)


def metadata(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_images(folder, *(f"{number}.png" for number in range(24)))
    rows = [
        {
            "file_name": f"{number}.png",
            "split": "train" if number < 20 else "test",
            "label": ("cat", "dog", None)[number % 2 if number < 20 else 2],
        }
        for number in range(24)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


SOURCES: list[Writer] = [hub, nulls, no_column, kaggle, flat_folder, metadata]
every_source = pytest.mark.parametrize("write", SOURCES)


@every_source
def test_a_test_split_without_labels_is_none(tmp_path: Path, write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageData(write(tmp_path, monkeypatch), image_size=32)
    with pytest.warns(UserWarning, match=r"the test split has no labels and counts as none; its 4 images"):
        assert data.summary.images == {"train": 14, "val": 2, "test": 4}
    assert data.summary.unlabelled == 4
    assert data.num_classes == 2
    batches = list(data.predict_dataloader())
    assert [batch.shape for batch in batches] == [(4, 3, 32, 32)]


@every_source
@pytest.mark.filterwarnings("ignore:the test split has no labels")
def test_the_rest_is_predicted(
    tmp_path: Path, write: Writer, monkeypatch: pytest.MonkeyPatch, make_trainer: Any
) -> None:
    data = ImageData(write(tmp_path / "data", monkeypatch), image_size=32, batch_size=3)
    model = ImageClassifier("test_resnet", 2, weights=None)
    out = tmp_path / "out.csv"
    make_trainer(PredictionWriter(out)).predict(model, data)
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == len({row["file"] for row in rows}) == 4
    assert {row["prediction"] for row in rows} <= set(data.class_names)


# Rows of both kinds


def mixed_parquet(folder: Path) -> str:
    write_parquet(folder / "all.parquet", [("cat", "dog", None)[row % 3] for row in range(30)], STRING)
    return str(folder)


def mixed_csv(folder: Path) -> str:
    write_images(folder, *(f"{number}.png" for number in range(30)), value=3)
    lines = [f"{number}.png,{('cat', 'dog', '')[number % 3]}" for number in range(30)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *lines]))
    return str(folder / "labels.csv")


def mixed_numbers(folder: Path) -> str:
    make_rows([row % 3 - 1 for row in range(30)], datasets.Value("int64")).save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize("write", [mixed_parquet, mixed_csv, mixed_numbers])
def test_rows_without_labels_among_others(tmp_path: Path, write: Callable[[Path], str]) -> None:
    data = ImageData(write(tmp_path), image_size=8)
    with pytest.warns(
        UserWarning, match=r"10 of the 30 images of the train split have no label, and are left out of it"
    ):
        assert sum(data.summary.images.values()) == 20
    assert len(data.predict_dataloader().dataset) == 10  # type: ignore[arg-type]
    assert len(UnlabelledSource(data.source, ["cat", "dog"], image_size=8).files) == 10


def test_images_and_labels_stay_together_where_rows_are_left_out(tmp_path: Path) -> None:
    data = ImageData(mixed_parquet(tmp_path), image_size=8)
    with pytest.warns(UserWarning, match=r"have no label"):
        splits = [data.images(split) for split in ("train", "val", "test")]
    for images in splits:
        for image, label in (images[item] for item in range(len(images))):
            assert int(image[0, 0, 0]) % 3 == label


# nc-finetune predict MODEL SOURCE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.save(TimmBackbone("test_resnet", None).model.state_dict(), tmp_path / "base.pt")
    save_delta(
        ImageClassifier(TimmBackbone("test_resnet", str(tmp_path / "base.pt")), 2), tmp_path / "model.safetensors"
    )
    return tmp_path / "model.safetensors"


def predicted(path: Path) -> list[str]:
    return [row["file"] for row in csv.DictReader(path.open())]


@pytest.mark.parametrize(
    ("write", "number"), [(nulls, 4), (no_column, 4), (hub, 4), (kaggle, 24), (flat_folder, 24), (metadata, 24)]
)
@pytest.mark.filterwarnings("ignore:.*no label")
def test_a_source_is_predicted(
    tmp_path: Path, write: Writer, number: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a folder of images, all of them: some may have a label.
    (tmp_path / "data").mkdir()
    out = tmp_path / "out.csv"
    predict_folder(model, write(tmp_path / "data", monkeypatch), out, image_size=32)
    assert len(predicted(out)) == number


def test_a_table_without_labels_is_predicted(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.csv"
    predict_folder(model, Path(kaggle(tmp_path / "data", monkeypatch)) / "test.csv", out, image_size=32)
    assert predicted(out) == [f"{number}.png" for number in range(4)]


def test_where_all_have_labels_all_are_predicted(tmp_path: Path, model: Path) -> None:
    write_parquet(tmp_path / "data/all.parquet", ["cat", "dog"] * 3, STRING)
    predict_folder(model, tmp_path / "data", tmp_path / "out.csv", image_size=32)
    assert len(predicted(tmp_path / "out.csv")) == 6


def test_images_that_do_not_decode_are_skipped(tmp_path: Path, make_trainer: Any) -> None:
    rows = make_rows(["cat", "dog", None, None, None], STRING).cast_column("image", datasets.Image(decode=False))
    images = [row["image"] for row in rows]
    images[3] = {"bytes": b"broken", "path": "x.png"}
    datasets.Dataset.from_dict({"image": images, "label": rows["label"][:]}).to_parquet(str(tmp_path / "all.parquet"))
    data = ImageData(str(tmp_path), image_size=32, on_bad_image="skip", test_size=1, val_size=1)
    batches: list[Tensor] = list(data.predict_dataloader())
    assert sum(map(len, batches)) == 2
    assert data.files is not None
    assert len(data.files) == 2


def test_what_is_left_out_when_predicting_is_said(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"train/{name}/{item}.png" for name in ("cat", "dog") for item in range(2)))
    write_images(tmp_path, "test/whole.png")
    (tmp_path / "test/torn.png").write_bytes(b"no image")
    data = ImageData(str(tmp_path), image_size=8, val_size=0, test_size=0, on_bad_image="skip")
    with pytest.warns(DataWarning, match="the test split has no labels"):
        loader = data.predict_dataloader()
    assert sum(map(len, loader)) == 1
    (bad,) = data.bad_images()
    assert (bad.table, bad.path) == ("unlabelled", str(tmp_path / "test/torn.png"))
    with pytest.warns(DataWarning, match=r"left out 1 images that do not decode:\n  .*torn\.png: the file is no image"):
        data.teardown("predict")
