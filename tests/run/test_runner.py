import io
import math
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from broken_images import write_broken_folder
from conftest import quick_first
from PIL import Image
from rich.console import Console
from torch import nn

from nc_finetune import ImageClassifier, ImageData, save_delta
from nc_finetune.callbacks import PrefixCache
from nc_finetune.results.result import Result, read_results, write_result
from nc_finetune.run import runner
from nc_finetune.run._cell import choice
from nc_finetune.run._cell.outcome import planned_result
from nc_finetune.run._cell.recording import delta_size
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Cell, Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, HeadSpec, LossSpec, MethodSpec
from nc_finetune.run.runner import run_grid


class _Curved(nn.Sequential):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, 8), nn.ReLU(), nn.Linear(8, out_features))


def make_grid(method: str = "LinearProbe", rates: tuple[float, ...] = (1e-3, 1e-1), **changes: Any) -> Grid:
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        "datasets": [DatasetSpec(source="sklearn:digits", name="digits", image_size=32, val_size=50, test_size=60)],
        "methods": [MethodSpec(method=method, learning_rates=list(rates))],
        "samples_per_class": [4],
        "settings": Settings(epochs=1),
    }
    return Grid(**{**parts, **changes})


def make_cell(**options: Any) -> Cell:
    (cell,) = make_grid(**options).cells()
    return cell


@pytest.fixture(scope="module")
def finished() -> Result:
    return run_cell(make_cell(method="SkipConnectionFinetuning"))


def test_result_names_what_was_run(finished: Result) -> None:
    assert (finished.status, finished.error) == ("ok", None)
    assert (finished.method, finished.key_layer, finished.dataset) == ("scl_ft", "layer2.0", "digits")
    assert (finished.head, finished.loss) == ("linear", "cross_entropy_loss")
    assert (finished.train_size, finished.samples_per_class, finished.epochs) == (40, 4, 1)


def test_rate_is_the_best_by_validation(finished: Result) -> None:
    assert list(finished.learning_rates) == ["0.001", "0.1"]
    best = max(finished.learning_rates, key=lambda rate: finished.learning_rates[rate] or 0.0)
    assert finished.learning_rate == float(best)
    assert finished.val_accuracy == finished.learning_rates[best]


def test_accuracy_is_in_per_cent_of_the_test_images(finished: Result) -> None:
    assert finished.accuracy is not None
    assert (finished.accuracy * 60 / 100) == pytest.approx(round(finished.accuracy * 60 / 100), abs=1e-4)


def test_nc1_of_every_layer_is_kept(finished: Result) -> None:
    assert list(finished.nc1_layers) == ["stem", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate"]
    assert finished.nc1 == finished.nc1_layers["penultimate"]


def test_collapse_measures_of_the_penultimate_feature_are_kept(finished: Result) -> None:
    nc2 = ["nc2_equinorm", "nc2_equiangle", "nc2_etf_distance", "nc2_of_distance"]
    assert list(finished.collapse) == ["nc1", *nc2, "nc3_etf_distance", "nc4"]
    assert finished.collapse["nc1"] == finished.nc1
    assert all((finished.collapse[name] or 0) > 0 for name in nc2)


def test_classes_and_closest_pairs_of_the_penultimate_feature_are_kept(finished: Result) -> None:
    assert list(finished.class_spread) == finished.class_names == [str(digit) for digit in range(10)]
    assert all((spread or 0) > 0 for spread in finished.class_spread.values())
    assert len(finished.closest_pairs) == 5
    assert all(set(pair.split("|")) <= set(finished.class_names) for pair in finished.closest_pairs)


def test_measures_of_the_classifier_need_one_that_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Cell, "build_model", lambda cell, net, data, _: ImageClassifier(net, data.num_classes, head=_Curved)
    )
    collapse = run_cell(make_cell(rates=(1e-3,))).collapse
    assert "nc2_etf_distance" in collapse
    assert not {"nc3_etf_distance", "nc4"} & set(collapse)


def test_parameters_time_and_memory_are_counted(finished: Result) -> None:
    assert finished.tuned_parameters is not None
    assert finished.total_parameters is not None
    assert finished.tuned_percent == 100 * finished.tuned_parameters / finished.total_parameters
    assert finished.epoch_seconds is not None
    assert finished.epoch_seconds > 0
    assert finished.peak_memory_bytes is not None
    assert finished.peak_memory_bytes > 2**20


def test_provenance_tells_where_it_came_from(finished: Result) -> None:
    keys = {"versions", "git_commit", "git_dirty", "weights_hash", "data_fingerprint", "platform", "device"}
    assert keys <= set(finished.provenance)
    assert finished.provenance["versions"]["torch"] == version("torch")


def test_same_cell_gives_the_same_numbers(finished: Result) -> None:
    again = run_cell(make_cell(method="SkipConnectionFinetuning"))
    timeless = {"epoch_seconds": None, "peak_memory_bytes": None, "run_seconds": None, "processor_seconds": None}
    assert replace(again, **timeless) == replace(finished, **timeless)  # type: ignore[arg-type]


def test_test_split_is_touched_once_per_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    setup = ImageClassifier.setup
    monkeypatch.setattr(ImageClassifier, "setup", lambda self, stage: (stages.append(stage), setup(self, stage))[1])
    run_cell(make_cell())
    assert stages == ["fit", "fit", "test"]


def test_loss_that_is_not_finite_is_recorded_as_diverged() -> None:
    result = run_cell(make_cell(method="FullFinetuning", rates=(1e30,), settings=Settings(epochs=3)))
    assert result.status == "diverged"
    assert result.nc1 is None
    assert "not finite" in (result.error or "")


def test_one_diverged_rate_does_not_spoil_the_others() -> None:
    result = run_cell(make_cell(method="FullFinetuning", rates=(1e30, 1e-4), settings=Settings(epochs=3)))
    assert result.status == "ok"
    assert result.learning_rates["1e+30"] is None
    assert result.learning_rate == 1e-4


def test_collapsed_class_means_are_recorded_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Cell.build_model

    def dead(cell: Cell, *arguments: Any) -> ImageClassifier:
        model = build(cell, *arguments)
        for part in model.backbone.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
        return model

    monkeypatch.setattr(Cell, "build_model", dead)
    with pytest.warns(UserWarning, match="class means coincide"):
        result = run_cell(make_cell())
    assert result.status == "diverged"
    assert result.nc1 is None or math.isnan(result.nc1)


def broken_images(folder: Path) -> DatasetSpec:
    """Return data whose images do not decode."""
    for name in ("cat", "dog"):
        for index in range(20):
            path = folder / "broken" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image")
    return DatasetSpec(source=str(folder / "broken"), name="broken", image_size=32)


def test_failure_is_recorded_with_its_error(tmp_path: Path) -> None:
    result = run_cell(make_cell(datasets=[broken_images(tmp_path)]))
    assert result.status == "failed"
    assert "does not decode" in (result.error or "")
    assert result.run_seconds is not None


def test_grid_goes_on_after_a_failure(tmp_path: Path) -> None:
    good = DatasetSpec(source="sklearn:digits", name="digits", image_size=32, val_size=50)
    grid = make_grid(datasets=[broken_images(tmp_path), good], rates=(1e-3,))
    assert [result.status for result in run_grid(grid, tmp_path)] == ["failed", "ok"]
    assert len(read_results(tmp_path / "results")) == 2


def test_learning_curve_has_a_point_an_epoch() -> None:
    result = run_cell(make_cell(settings=Settings(epochs=3), rates=(1e-2,)))
    assert [len(result.learning_curve[name]) for name in ("train_loss", "train_accuracy")] == [3, 3]
    assert result.learning_curve["train_loss"][2] < result.learning_curve["train_loss"][0]
    assert all(0 <= value <= 100 for value in result.learning_curve["train_accuracy"])


def test_confusion_matrix_holds_every_test_image_and_the_accuracy(finished: Result) -> None:
    matrix = finished.confusion_matrix()
    assert sum(map(sum, matrix)) == 60
    assert 100 * sum(row[label] for label, row in enumerate(matrix)) / 60 == pytest.approx(finished.accuracy)
    assert len(finished.class_names) == 10


def test_delta_is_as_large_as_the_file_but_for_its_header(tmp_path: Path) -> None:
    data = ImageData("sklearn:digits")
    model = make_cell(method="LayerFinetuning").build_model(make_cell().build_backbone(), data, 1e-3)
    save_delta(model, tmp_path / "delta.safetensors")
    header = (tmp_path / "delta.safetensors").stat().st_size - delta_size(model)
    assert 0 < header < 20_000


def count_runs(monkeypatch: pytest.MonkeyPatch, status: Any = "ok") -> list[str]:
    ran: list[str] = []

    def fake(cell: Cell, advance: Any) -> Result:
        ran.append(cell.run_id)
        return replace(planned_result(cell), accuracy=50.0, status=status)

    monkeypatch.setattr(runner, "run_cell", fake)
    return ran


@pytest.mark.parametrize("status", ["ok", "failed", "diverged"])
def test_what_has_a_result_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Any) -> None:
    ran = count_runs(monkeypatch, status)
    grid = make_grid(seeds=[0, 1])
    run_grid(grid, tmp_path)
    run_grid(grid, tmp_path)
    assert ran == [cell.run_id for cell in grid.cells()]


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_what_did_not_succeed_is_run_again_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Any
) -> None:
    ran = count_runs(monkeypatch)
    good, bad = make_grid(seeds=[0, 1]).cells()
    write_result(replace(planned_result(good), accuracy=1.0), tmp_path / "results")
    write_result(replace(planned_result(bad), status=status), tmp_path / "results")
    results = run_grid(make_grid(seeds=[0, 1]), tmp_path, retry_failed=True)
    assert ran == [bad.run_id]
    assert [result.accuracy for result in results] == [1.0, 50.0]


@pytest.mark.parametrize("text", ['{"run_id": ', '{"schema_version": 99}'])
def test_files_that_are_no_results_are_set_aside_named_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    ran = count_runs(monkeypatch)
    path = tmp_path / "results" / f"{make_cell().run_id}.json"
    path.parent.mkdir()
    path.write_text(text)
    terminal = io.StringIO()
    run_grid(make_grid(), tmp_path, Console(file=terminal, width=400))
    assert ran == [make_cell().run_id]
    assert path.with_suffix(".invalid").read_text() == text
    assert str(path.with_suffix(".invalid")) in terminal.getvalue()


def test_an_automatic_key_layer_is_chosen_on_validation_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    setup = ImageClassifier.setup
    monkeypatch.setattr(ImageClassifier, "setup", lambda self, stage: (stages.append(stage), setup(self, stage))[1])
    backbone = BackboneSpec(name="test_resnet", weights=None, key_layer="auto")
    cell = make_cell(method="LayerFinetuning", rates=(1e-3,), backbones=[backbone])
    result = run_cell(cell)
    assert result.status == "ok", result.error
    assert result.run_id == cell.run_id
    assert result.key_layer == result.selection["block"]
    assert set(result.selection["other_rules"]) == {"argmin NC1", "Auto-RGN", "middle block"}
    assert stages == ["fit", "test"]


def test_heads_share_one_choice_of_the_key_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    choose = choice.choose_key_layer
    monkeypatch.setattr(choice, "choose_key_layer", lambda *args, **named: chosen.append("") or choose(*args, **named))
    backbone = BackboneSpec(name="test_resnet", weights=None, key_layer="auto")
    cell = make_cell(method="LayerFinetuning", rates=(1e-3,), backbones=[backbone], seeds=[7])  # a sample of its own
    plain, cosine = run_cell(cell), run_cell(replace(cell, head=HeadSpec(head="CosineHead")))
    assert len(chosen) == 1
    assert plain.selection == cosine.selection


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_were_left_out_are_in_the_result(tmp_path: Path) -> None:
    broken = write_broken_folder(tmp_path / "pets", 40)
    spec = DatasetSpec(source=str(tmp_path / "pets"), name="pets", image_size=32, on_bad_image="skip")
    result = run_cell(make_cell(rates=(1e-3,), datasets=[spec], samples_per_class=[None]))
    assert result.status == "ok"
    assert sorted(line.split(": ")[0] for line in result.bad_images) == sorted(map(str, broken))


@pytest.mark.parametrize("method", quick_first(1, ["SkipConnectionFinetuning", "LinearProbe", "FullFinetuning"]))
def test_results_are_the_same_without_the_cache(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    fill = PrefixCache._keep
    monkeypatch.setattr(PrefixCache, "_keep", lambda self, *args: kept.append(1) or fill(self, *args))
    cached, plain = (run_cell(make_cell(method=method, cache=cache)) for cache in (True, False))
    # Of two fits, the training and the validation split each; of the better one, the test split.
    assert len(kept) == (0 if method == "FullFinetuning" else 5)
    # A kernel may round a sample otherwise in a batch of another size: the last one holds other samples here and there.
    assert cached.collapse == pytest.approx(plain.collapse, rel=1e-5)
    assert cached.nc1_layers == pytest.approx(plain.nc1_layers, rel=1e-5)
    assert cached.learning_curve.keys() == plain.learning_curve.keys()
    for name, values in cached.learning_curve.items():
        assert values == pytest.approx(plain.learning_curve[name], rel=1e-5)
    of_classes = ("class_spread", "closest_pairs", "temperature", "calibration_error", "tempered_calibration_error")
    rounded = ("collapse", "nc1_layers", "nc1", "learning_curve", *of_classes)
    changing = ("epoch_seconds", "run_seconds", "processor_seconds", "peak_memory_bytes", *rounded)
    assert replace(cached, **dict.fromkeys(changing)) == replace(plain, **dict.fromkeys(changing))
    assert make_cell(method=method, cache=False).run_id == make_cell(method=method).run_id


def uneven(folder: Path) -> DatasetSpec:
    """Return a folder in which one class has five times the images of the other."""
    for name, number in (("cat", 50), ("dog", 10)):
        (folder / name).mkdir(parents=True)
        for item in range(number):
            Image.effect_noise((16, 16), 20 + 60 * (name == "dog")).save(folder / name / f"{item}.png")
    return DatasetSpec(source=str(folder), name="uneven", image_size=32, val_size=12, test_size=24)


def test_uneven_classes_have_a_balanced_accuracy(tmp_path: Path) -> None:
    losses = [LossSpec(loss="ClassBalanced", options={"beta": 0.9})]
    dataset = replace(uneven(tmp_path), balance_classes=True)
    result = run_cell(make_cell(datasets=[dataset], samples_per_class=[None], losses=losses))
    assert (result.status, result.error) == ("ok", None)
    recalls = [row[label] / sum(row) for label, row in enumerate(result.confusion_matrix())]
    assert result.balanced_accuracy == pytest.approx(100 * sum(recalls) / 2)
    assert result.loss == "class_balanced"
    assert result.options == {"beta": 0.9, "balance_classes": True}


@pytest.mark.parametrize("change", quick_first(1, ["balance_classes", "ClassBalanced"]))
def test_both_ways_to_balance_change_the_training(tmp_path: Path, change: str) -> None:
    dataset = uneven(tmp_path)
    plain = run_cell(make_cell(datasets=[dataset], samples_per_class=[None], rates=(1e-3,)))
    losses = [LossSpec(loss=change if change == "ClassBalanced" else None)]
    dataset = replace(dataset, balance_classes=change == "balance_classes")
    balanced = run_cell(make_cell(datasets=[dataset], samples_per_class=[None], rates=(1e-3,), losses=losses))
    assert balanced.status == plain.status == "ok"
    assert balanced.learning_curve["train_loss"] != plain.learning_curve["train_loss"]
