"""What a saved model says of images that nobody has labelled, and how far to trust it: file, page, programs."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tuning_photos import write_photos

from nc_finetune import ImageClassifier, save_delta
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import PredictionWriter
from nc_finetune.cli.app import main
from nc_finetune.deployment import Predicted, export_onnx, export_program, load_model, predict_folder, predict_images
from nc_finetune.doubt import DoubtState, take_state
from nc_finetune.functional.readout import SolvedHead, solve_head
from nc_finetune.heads import set_width_
from nc_finetune.losses import PickAllLabelsLoss
from nc_finetune.methods import LayerReadout, LinearProbe
from nc_finetune.report.unlabelled_page import describe_predictions, render_unlabelled_page

NAMES = ["cat", "<b>dog</b>", "=owl"]
TABLES = ["strangeness", "distances", "relative"]
COLUMNS = ["label", "probability", "set", "unlike", "stranger"]


@torch.no_grad()
def make_model(folder: Path, **options: Any) -> tuple[ImageClassifier, SolvedHead]:
    """Solve a readout of photos of three colours, on weights from a file."""
    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    state = TimmBackbone("test_resnet", None).model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    model = ImageClassifier(
        TimmBackbone("test_resnet", str(path)), 3, method=LayerReadout("later_half"), **options
    ).eval()
    images, labels = photos(folder / "train")
    features = model.features(images)
    head = solve_head(features, labels, 3)
    set_width_(model.head, features.shape[1])
    model.head.weight.copy_(head.weight)
    model.head.bias.copy_(head.bias)
    return model, head


def photos(folder: Path, seed: int = 0) -> tuple[Tensor, Tensor]:
    write_photos(folder, each=20, seed=seed)
    files = sorted(folder.rglob("*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    return images, torch.tensor([int(file.parent.name[-1]) for file in files])


@torch.no_grad()
def doubts(model: ImageClassifier, head: SolvedHead, folder: Path, **options: Any) -> DoubtState:
    images, labels = photos(folder / "train")
    kept = {"shrinkage": head.shrinkage, "logits": head.logits * 2, **options}
    return take_state(model.features(images), labels, 3, **kept)


@pytest.fixture
def known(tmp_path: Path) -> ImageClassifier:
    """A model with statistics in ``it.safetensors``, and images in ``new``, of which two are of something else."""
    model, head = make_model(tmp_path)
    model.doubt = doubts(model, head, tmp_path)
    save_delta(model, tmp_path / "it.safetensors", NAMES)
    write_photos(tmp_path / "new", each=3, seed=5)
    for name in ("a <i>.png", "b.png"):
        noise = np.random.default_rng(1).integers(0, 2, (32, 32, 3)) * 255
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "new" / name)
    return model


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_every_image_has_a_label_a_set_and_how_unlike_it_is(known: ImageClassifier, tmp_path: Path) -> None:
    predict_folder(tmp_path / "it.safetensors", tmp_path / "new", tmp_path / "out.csv", image_size=32, batch_size=4)
    rows = rows_of(tmp_path / "out.csv")
    names = [*NAMES[:2], "'=owl"]
    assert list(rows[0]) == ["file", *COLUMNS, *names]
    assert len(rows) == 11
    for row in rows:
        pixels = np.array(Image.open(tmp_path / "new" / row["file"]))
        found = known.doubts(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        assert [float(row[name]) for name in names] == pytest.approx(found.probabilities[0].tolist(), abs=1e-5)
        best = int(found.probabilities[0].argmax())
        assert row["label"] == names[best]
        assert float(row["probability"]) == pytest.approx(found.probabilities[0, best].item(), abs=1e-5)
        inside = [name for name, kept in zip(NAMES, found.in_set[0].tolist(), strict=True) if kept]
        assert row["set"].removeprefix("'") == "|".join(inside)
        assert float(row["unlike"]) == pytest.approx(found.unlike.item(), abs=1e-3)
        assert row["stranger"] == ("yes" if found.stranger else "no")
    assert {row["stranger"] for row in rows if "/" not in row["file"]} == {"yes"}
    assert sum(row["stranger"] == "yes" for row in rows if "/" in row["file"]) <= 2


def test_a_larger_coverage_gives_larger_sets(known: ImageClassifier, tmp_path: Path) -> None:
    sizes = []
    for coverage in (0.3, 0.9, 0.97):
        found = predict_images(
            tmp_path / "it.safetensors", tmp_path / "new", tmp_path / "out.csv", image_size=32, coverage=coverage
        )
        sizes.append([len(one.in_set or ()) for one in found.predictions])
        for one in found.predictions:
            assert (one.label in (one.in_set or ())) == bool(one.in_set)  # a set holds the likeliest classes
    assert all(few <= more for few, more in zip(sizes[0], sizes[2], strict=True))
    assert sum(sizes[0]) < sum(sizes[2])


def test_files_without_statistics_have_the_columns_of_before_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = make_model(tmp_path)
    save_delta(model, tmp_path / "it.safetensors", NAMES)
    words = ["predict", str(tmp_path / "it.safetensors"), str(tmp_path / "train"), "--out", str(tmp_path / "out.csv")]
    assert main([*words, "--image-size", "32"]) == 0
    assert list(rows_of(tmp_path / "out.csv")[0]) == ["file", "prediction", *NAMES[:2], "'=owl"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no word on strangers" in line]
    assert line.endswith("fit it anew with that, or by nc-finetune tune")
    (tmp_path / "out.csv").unlink()
    for more in (["--coverage", "0.8"], ["--unlabelled-report", str(tmp_path / "page.html")]):
        assert main([*words, *more]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nc-finetune: ")]
        assert "the model has no statistics of its training images" in line
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "page.html").exists()


def test_what_statistics_do_not_know_is_left_out(known: ImageClassifier, tmp_path: Path) -> None:
    assert known.doubt is not None
    known.doubt.scores = known.doubt.scores[:0]
    save_delta(known, tmp_path / "it.safetensors", NAMES)
    found = predict_images(tmp_path / "it.safetensors", tmp_path / "new", tmp_path / "out.csv", image_size=32)
    assert list(rows_of(tmp_path / "out.csv")[0])[:5] == ["file", "label", "probability", "unlike", "stranger"]
    assert found.predictions[0].in_set is None
    with pytest.raises(ValueError, match=r"sets take images that the model was not trained on, and its fit had none"):
        predict_folder(tmp_path / "it.safetensors", tmp_path / "new", tmp_path / "out.csv", coverage=0.9)


@pytest.mark.parametrize(
    ("counts", "scored", "columns", "missing"),
    [
        ([20, 20, 20], True, ["set", "unlike", "stranger"], []),
        ([20, 20, 20], False, ["unlike", "stranger"], ["No sets: "]),
        ([2, 1, 1], True, ["set"], ["No word on strangers: "]),  # without one of the two there is no covariance
        ([2, 1, 1], False, [], ["No sets: ", "No word on strangers: "]),
    ],
)
@torch.no_grad()
def test_the_command_leaves_out_what_a_fit_could_not_know_and_says_so(
    known: ImageClassifier,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    counts: list[int],
    scored: bool,
    columns: list[str],
    missing: list[str],
) -> None:
    images, labels = photos(tmp_path / "train")
    first = torch.cat([(labels == label).nonzero().flatten()[:count] for label, count in enumerate(counts)])
    features = known.features(images[first])
    kept = {"logits": known.head(features)} if scored else {}
    known.doubt = take_state(features, labels[first], 3, shrinkage=0.5, **kept)
    save_delta(known, tmp_path / "it.safetensors", NAMES)
    words = ["predict", str(tmp_path / "it.safetensors"), str(tmp_path / "new"), "--image-size", "32"]
    assert main([*words, "--out", str(tmp_path / "out.csv")]) == 0
    rows = rows_of(tmp_path / "out.csv")
    assert list(rows[0]) == ["file", "label", "probability", *columns, *NAMES[:2], "'=owl"]
    assert all(0 <= float(row["unlike"]) <= 1 for row in rows if "unlike" in row)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("No ")]
    assert [line[: line.index(":") + 2] for line in told] == missing


def test_classes_may_be_called_as_the_columns_and_have_a_divider(known: ImageClassifier, tmp_path: Path) -> None:
    names = ["set", "a|b", "stranger"]
    save_delta(known, tmp_path / "it.safetensors", names)
    model, images = tmp_path / "it.safetensors", tmp_path / "new"
    found = predict_images(model, images, tmp_path / "out.csv", image_size=32, coverage=0.97)
    rows = rows_of(tmp_path / "out.csv")
    assert list(rows[0]) == ["file", *COLUMNS, "class set", "a|b", "class stranger"]
    assert len({row["label"] for row in rows}) > 1
    for row, said in zip(rows, found.predictions, strict=True):
        assert said.label == row["label"]
        assert row["stranger"] in ("yes", "no")
        column = {"set": "class set", "stranger": "class stranger"}.get(said.label, said.label)
        assert row[column] == row["probability"]
        cell = csv.reader([row["set"]], delimiter="|", escapechar="\\", quoting=csv.QUOTE_NONE)
        assert tuple(next(cell, ())) == said.in_set


def test_coverage_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="coverage must lie between 0 and 1"):
        PredictionWriter(coverage=90)
    torch.manual_seed(0)
    make_model(tmp_path)
    backbone = TimmBackbone("test_resnet", str(tmp_path / "weights.safetensors"))
    several = ImageClassifier(backbone, 3, method=LinearProbe(), loss=PickAllLabelsLoss())
    save_delta(several, tmp_path / "several.safetensors", NAMES)
    with pytest.raises(ValueError, match="sets that hold the one right class, and images have several; leave it out"):
        predict_folder(tmp_path / "several.safetensors", tmp_path / "train", coverage=0.9)
    with pytest.raises(ValueError, match="this one knows several; leave the page out"):
        predict_images(tmp_path / "several.safetensors", tmp_path / "train", need_doubts=True)


def test_the_page_shows_the_strangest_and_the_least_sure(
    known: ImageClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    page = tmp_path / "page.html"
    words = ["predict", str(tmp_path / "it.safetensors"), str(tmp_path / "new"), "--out", str(tmp_path / "out.csv")]
    more = ["--image-size", "32", "--unlabelled-report", str(page), "--on-bad-image", "skip"]
    assert main([*words, *more]) == 0
    assert f"Page: {page}" in capsys.readouterr().out
    text = page.read_text()
    assert "a &lt;i&gt;.png" in text
    assert "<i>" not in text
    assert "<b>dog" not in text
    assert text.count("data:image/png;base64,") >= 11
    assert "1 images do not decode, and were skipped" in text
    strangest = text.index("<h2>Strangest</h2>")
    assert strangest < text.index("a &lt;i&gt;.png") < text.index("class0/", strangest)
    assert text.index("a &lt;i&gt;.png", strangest) < text.index("<h2>Least sure</h2>")
    assert "a &lt;i&gt;.png" not in text[text.index("<h2>Least sure</h2>") :]


def test_a_page_claims_only_what_was_measured(
    known: ImageClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def page_of() -> str:
        save_delta(known, tmp_path / "it.safetensors", NAMES)
        words = ["predict", str(tmp_path / "it.safetensors"), str(tmp_path / "new"), "--image-size", "32"]
        files = ["--out", str(tmp_path / "out.csv"), "--unlabelled-report", str(tmp_path / "page.html")]
        assert main([*words, *files]) == 0
        return (tmp_path / "page.html").read_text()

    state = known.doubt
    assert state is not None
    text = page_of()
    assert "of 11 images lie further from the training images than 95 % of these do" in text
    assert "The set of an image has" in text
    assert "Images like those of training of which" in text
    state.strangeness, state.distances, state.relative = (getattr(state, name)[:0] for name in TABLES)
    text = page_of()
    assert list(rows_of(tmp_path / "out.csv")[0]) == ["file", "label", "probability", "set", *NAMES[:2], "'=owl"]
    assert "the model keeps no distances of these" in text
    assert "The set of an image has" in text
    assert "95 %" not in text
    assert "further out" not in text
    assert "Strangest" not in text
    assert '<p class="quiet">Images of which the most probable class is least probable' in text
    assert text.count("<figure>") == 11
    state.scores = state.scores[:0]
    text = page_of()
    assert list(rows_of(tmp_path / "out.csv")[0]) == ["file", "label", "probability", *NAMES[:2], "'=owl"]
    assert "The set of an image has" not in text
    assert ">set: " not in text


def test_a_page_of_nothing_is_a_page() -> None:
    found = Predicted((), (), lambda place: b"", multilabel=False, knows_doubts=True, is_too_sure=True)
    text = render_unlabelled_page(describe_predictions(found, "nothing"))
    assert "new images look stranger than they are" in text
    with pytest.raises(ValueError, match="takes a model with statistics of its training images"):
        describe_predictions(Predicted((), (), lambda place: b"", False, False, False), "nothing")


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["logits", "probabilities", "unlike", "strangeness", "in_set"]
    return [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]


@pytest.mark.slow
def test_programs_give_the_doubts_of_the_model(known: ImageClassifier, tmp_path: Path) -> None:
    export_program(known, tmp_path / "it.pt2", image_size=32, uint8=True, doubt=True, coverage=0.8)
    export_onnx(known, tmp_path / "it.onnx", image_size=32, uint8=True, doubt=True, coverage=0.8)
    program = torch.export.load(tmp_path / "it.pt2").module()
    images = torch.cat(
        [photos(tmp_path / "more", seed=7)[0][::6], torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)]
    )
    with torch.no_grad():
        logits, expected = known(images), known.doubts(images, 0.8)
    for found in (program(images), run_onnx(tmp_path / "it.onnx", images)):
        torch.testing.assert_close(found[0], logits, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found[1], expected.probabilities, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[2], expected.unlike, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[3], expected.strangeness, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[4], expected.in_set)
    assert 0 < expected.unlike.min() + expected.unlike.max() < 2
    export_program(known, tmp_path / "plain.pt2", image_size=32, uint8=True)
    assert isinstance(torch.export.load(tmp_path / "plain.pt2").module()(images), Tensor)


@pytest.mark.slow
def test_the_command_exports_doubts_and_says_where_there_are_none(
    known: ImageClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(tmp_path / "it.safetensors"), str(tmp_path / "out.pt2")
    assert main(["export", file, "--to", "program", "--out", out, "--image-size", "32", "--doubt"]) == 0
    assert len(torch.export.load(out).module()(torch.rand(1, 3, 32, 32))) == 5
    plain, _ = load_model(file)
    plain.doubt = None
    save_delta(plain, tmp_path / "plain.safetensors", NAMES)
    refused = [
        ([str(tmp_path / "plain.safetensors"), "--to", "program", "--doubt"], "no statistics of its training images"),
        (
            [file, "--to", "program", "--coverage", "0.8"],
            "a coverage is of the sets that a program gives with its doubts",
        ),
        ([file, "--to", "state-dict", "--doubt"], "a state dict has no place for doubts"),
        ([file, "--to", "program", "--doubt", "--coverage", "8"], "must be between 0 and 1, such as 0.9, got 8"),
    ]
    for words, message in refused:
        assert main(["export", *words, "--out", str(tmp_path / "no.pt2")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.pt2").exists()
