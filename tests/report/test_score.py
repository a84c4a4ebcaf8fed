import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from nc_finetune.report._tables.score import balanced_accuracy, has_uneven_classes
from nc_finetune.results.result import Result


def run_with(matrix: list[list[int]]) -> Result:
    confusion = [" ".join(f"{label}:{count}" for label, count in enumerate(row) if count) for row in matrix]
    return Result(run_id="r", backbone="b", weights=None, dataset="d", method="m", confusion=confusion)


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    matrix = np.random.default_rng(0).integers(0, 20, (7, 7))
    true, predicted = (np.repeat(axis.ravel(), matrix.ravel()) for axis in np.indices(matrix.shape))
    expected = 100 * balanced_accuracy_score(true, predicted)
    assert balanced_accuracy(run_with(matrix.tolist())) == pytest.approx(expected)


def test_classes_without_test_images_do_not_count() -> None:
    assert balanced_accuracy(run_with([[3, 1], [0, 0]])) == 75.0
    assert not has_uneven_classes(run_with([[3, 1], [0, 0]]))


@pytest.mark.parametrize(("sizes", "uneven"), [((10, 10), False), ((10, 15), False), ((10, 16), True)])
def test_classes_are_uneven_from_half_as_many_again_on(sizes: tuple[int, int], uneven: bool) -> None:
    assert has_uneven_classes(run_with([[sizes[0], 0], [0, sizes[1]]])) is uneven
