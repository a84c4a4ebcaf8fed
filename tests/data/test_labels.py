from typing import Any

import datasets
import pytest
from made_up_images import make_rows

from nc_finetune.data.labels import number_labels

INTEGER = datasets.Value("int64")
STRING = datasets.Value("string")


def test_declared_classes_keep_their_numbers() -> None:
    rows = make_rows([2, 0], datasets.ClassLabel(names=["zebra", "ape", "cat"]))
    assert number_labels({"train": rows}, "label") == (("zebra", "ape", "cat"), {"train": [2, 0]})


def test_strings_are_numbered_in_alphabetical_order() -> None:
    assert number_labels({"train": make_rows(["b", "a", "b"], STRING)}, "label") == (("a", "b"), {"train": [1, 0, 1]})


def test_integers_are_numbered_in_rising_order() -> None:
    assert number_labels({"train": make_rows([10, 9, 0], INTEGER)}, "label") == (
        ("0", "9", "10"),
        {"train": [2, 1, 0]},
    )


def test_integers_that_start_at_one_make_no_empty_class() -> None:
    assert number_labels({"train": make_rows([1, 2, 3], INTEGER)}, "label") == (("1", "2", "3"), {"train": [0, 1, 2]})


def test_truth_values_are_labels() -> None:
    rows = make_rows([True, False], datasets.Value("bool"))
    assert number_labels({"train": rows}, "label") == (("False", "True"), {"train": [1, 0]})


@pytest.mark.parametrize(("feature", "train", "test"), [(STRING, ["b", "c"], ["a", "c"]), (INTEGER, [1, 2], [0, 2])])
def test_a_class_has_the_same_number_in_every_split(feature: Any, train: list[Any], test: list[Any]) -> None:
    _, labels = number_labels({"train": make_rows(train, feature), "test": make_rows(test, feature)}, "label")
    assert labels == {"train": [1, 2], "test": [0, 2]}


def test_labels_of_an_unlabelled_test_split_are_refused() -> None:
    # Test splits of the hub often have -1 throughout.
    splits = {"train": make_rows([0, 1]), "test": make_rows([-1, -1])}
    with pytest.raises(ValueError, match=r"lie in \[0, 2\), the test split has -1; leave rows without a label out$"):
        number_labels(splits, "label")


def test_labels_beyond_the_declared_classes_are_refused() -> None:
    rows = make_rows([0, 2, 1], INTEGER)
    rows.info.features["label"] = datasets.ClassLabel(names=["cat", "dog"])  # as damaged metadata would say
    with pytest.raises(ValueError, match=r"lie in \[0, 2\), the train split has 2; leave rows without a label out$"):
        number_labels({"train": rows}, "label")


def test_negative_integers_are_no_classes() -> None:
    with pytest.raises(ValueError, match=r"the train split has -2, -1; leave rows without a label out"):
        number_labels({"train": make_rows([0, 1, -1, -2], INTEGER)}, "label")


@pytest.mark.parametrize(
    ("feature", "labels", "shown"),
    [
        (INTEGER, [0, None], "None"),
        (STRING, ["a", None], "None"),
        (datasets.ClassLabel(names=["a", "b"]), [0, None], "None"),
        (datasets.Value("float64"), [0.5, 1.0], "0.5"),
        (datasets.Sequence(INTEGER), [[0, 1], [2]], r"\[0, 1\]"),
    ],
)
def test_what_is_neither_integer_nor_string_is_refused(feature: Any, labels: list[Any], shown: str) -> None:
    with pytest.raises(ValueError, match=rf"the train split has {shown}; leave rows without a label out"):
        number_labels({"train": make_rows(labels, feature)}, "label")


def test_splits_that_declare_classes_in_another_order_are_refused() -> None:
    splits = {
        "train": make_rows([0, 1], datasets.ClassLabel(names=["cat", "dog"])),
        "test": make_rows([0, 1], datasets.ClassLabel(names=["dog", "cat"])),
    }
    with pytest.raises(ValueError, match=r"same order; train has \['cat', 'dog'\], test has \['dog', 'cat'\]"):
        number_labels(splits, "label")


def test_integers_beside_strings_are_refused() -> None:
    splits = {"train": make_rows([0, 1], INTEGER), "test": make_rows(["0", "1"], STRING)}
    with pytest.raises(ValueError, match=r"column 'label' must hold integers in every split or strings in every split"):
        number_labels(splits, "label")
