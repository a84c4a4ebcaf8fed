"""Calibration before and after one temperature, whatever that was found by."""

from typing import Any

import pytest
import torch

from nc_finetune.callbacks import ReadoutSolver
from nc_finetune.functional import temperature
from nc_finetune.results.result import Result
from nc_finetune.run._cell.calibration import calibrated, found_temperature
from nc_finetune.run._cell.run import run_cell
from nc_finetune.run.cell import Settings
from nc_finetune.run.grid import BackboneSpec, DatasetSpec, Grid, MethodSpec


def run(method: MethodSpec, **changes: Any) -> Result:
    parts: dict[str, Any] = {
        "backbones": [BackboneSpec(name="test_resnet", weights=None, key_layer="layer2.0")],
        "datasets": [DatasetSpec(source="sklearn:digits", name="digits", image_size=32, val_size=50, test_size=60)],
        "methods": [method],
        "samples_per_class": [5],
        "settings": Settings(epochs=2),
    }
    (cell,) = Grid(**{**parts, **changes}).cells()
    found = run_cell(cell)
    assert found.error is None
    return found


def test_validation_images_choose_the_temperature() -> None:
    found = run(MethodSpec(method="LinearProbe", learning_rates=[1e-2]))
    assert found.temperature is not None
    assert found.temperature != 1
    assert 0 < (found.calibration_error or 0) < 100
    assert found.tempered_calibration_error != found.calibration_error


@pytest.mark.slow
def test_folds_choose_it_where_there_is_no_validation() -> None:
    method = MethodSpec(method="LinearProbe", learning_rates=[1e-2])
    data = DatasetSpec(source="sklearn:digits", name="digits", image_size=32, test_size=60)
    found = run(method, datasets=[data], choice="folds", folds=2)
    assert found.temperature is not None
    assert found.tempered_calibration_error is not None


def test_a_readout_has_its_temperature_by_leaving_one_out() -> None:
    found = run(MethodSpec(method="LayerReadout", options={"layers": "penultimate"}))
    assert found.temperature is not None
    assert found.temperature > 1  # Gaussian posteriors are far too sure
    assert (found.tempered_calibration_error or 100) < (found.calibration_error or 0)


@pytest.mark.slow
def test_a_solved_head_has_that_of_the_validation_images() -> None:
    found = run(MethodSpec(method="LayerFinetuning", learning_rates=[1e-3], solve_head={"take": "mean"}))
    assert found.readout["taken"] == "mean"
    assert found.temperature is not None
    assert found.calibration_error is not None


def test_before_is_what_the_logits_were_divided_by() -> None:
    logits, target = 5 * torch.randn(200, 3), torch.randint(3, (200,))
    plain = calibrated((logits, target), 4.0, 1.0)
    assert calibrated((logits / 4, target), 1.0, 4.0) == pytest.approx(plain)
    assert plain.temperature == 4
    assert calibrated((logits, target), None, 1.0) == (plain.error, None, None)
    assert calibrated(None, None, 1.0) == (None, None, None)


def test_nothing_is_found_without_images_or_with_none_that_is_finite() -> None:
    assert found_temperature(None, [ReadoutSolver()]) == (None, 1.0)
    assert found_temperature((torch.full((3, 2), torch.nan), torch.zeros(3, dtype=torch.long)), []) == (None, 1.0)
    logits, target = torch.randn(50, 3), torch.randint(3, (50,))
    assert found_temperature((logits, target), []) == (temperature(logits, target).item(), 1.0)
