from typing import Any

import datasets
import pytest
from made_up_images import make_rows

from nc_finetune.data.columns.labels import number_labels

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


@pytest.mark.parametrize(
    ("feature", "labels", "expected"),
    [
        (None, [-1, 1, -1], [None, 1, None]),  # as test splits of the hub have it
        (INTEGER, [0, None, 4], [0, None, 1]),
        (STRING, ["b", None, " ", "a"], [1, None, None, 0]),
        (datasets.Value("float64"), [1.0, float("nan"), 0.0, None], [1, None, 0, None]),
        (datasets.ClassLabel(names=["a", "b"]), [0, None], [0, None]),
        (STRING, ["2.0", "", "10.0"], [0, None, 1]),  # pandas, once a cell is empty
        (STRING, ["-1", "7", "5"], [None, 1, 0]),
    ],
)
def test_what_stands_for_no_label(feature: Any, labels: list[Any], expected: list[Any]) -> None:
    splits = {"train": make_rows([0, 1], feature), "test": make_rows(labels, feature)} if feature is None else {}
    numbered = number_labels(
        splits or {"test": make_rows(labels, feature), "train": make_rows(labels, feature)}, "label"
    )
    assert numbered[1]["test"] == expected


@pytest.mark.parametrize(
    ("feature", "labels", "names"),
    [
        *((datasets.Value(kind), [10, 2, 1, 2], ("1", "2", "10")) for kind in ("uint8", "int16", "int32", "uint64")),
        *((datasets.Value(kind), [10.0, 2.0, 1.0, 2.0], ("1", "2", "10")) for kind in ("float32", "float64")),
        (STRING, ["10", "2", "1", "2"], ("1", "2", "10")),
        (STRING, ["10.0", "2.0", "1.0", "2.0"], ("1", "2", "10")),
        (datasets.Value("large_string"), ["10", "2", "1", "2"], ("1", "2", "10")),
    ],
)
def test_whole_numbers_of_every_type_are_classes_in_their_order(feature: Any, labels: list[Any], names: Any) -> None:
    assert number_labels({"train": make_rows(labels, feature)}, "label") == (names, {"train": [2, 1, 0, 1]})


def test_a_split_may_name_the_classes_that_train_declares() -> None:
    splits = {"train": make_rows([1, 0]), "val": make_rows(["dog", "cat"], STRING), "test": make_rows([1, -1], INTEGER)}
    assert number_labels(splits, "label")[1] == {"train": [1, 0], "val": [1, 0], "test": [1, None]}


ALIKE = [
    ("Cat", "cat"),
    ("cat ", "cat"),
    ("\uff23\uff41\uff54", "Cat"),
    ("sea-lion", "sea lion"),
    ("sea_lion", "Sea Lion"),
    ("c\u200bat", "cat"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_classes_of_two_splits_that_hardly_differ_are_refused(one: str, other: str) -> None:
    splits = {"train": make_rows([one, "dog"], STRING), "val": make_rows([other, "dog"], STRING)}
    with pytest.raises(ValueError, match=r"hardly differ: case, spaces") as error:
        number_labels(splits, "label")
    assert f"{one!r} (train) and {other!r} (val)" in str(error.value)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_classes_of_one_split_that_hardly_differ_stay_with_a_warning(one: str, other: str) -> None:
    with pytest.warns(UserWarning, match=r"hardly differ stay classes of their own"):
        names, _ = number_labels({"train": make_rows([one, other], STRING)}, "label")
    assert set(names) == {one, other}


def test_composed_and_decomposed_letters_are_one_class() -> None:
    splits = {"train": make_rows(["B\u00e4r", "dog"], STRING), "val": make_rows(["Ba\u0308r", "dog"], STRING)}
    assert number_labels(splits, "label") == (("B\u00e4r", "dog"), {"train": [0, 1], "val": [0, 1]})


def test_labels_beyond_the_declared_classes_are_refused() -> None:
    rows = make_rows([0, 2, 1], INTEGER)
    rows.info.features["label"] = datasets.ClassLabel(names=["cat", "dog"])  # as damaged metadata would say
    with pytest.raises(ValueError, match=r"lie in \[0, 2\), the train split has 2; leave rows without a label out$"):
        number_labels({"train": rows}, "label")


def test_negative_integers_are_no_classes() -> None:
    with pytest.raises(ValueError, match=r"the train split has -2; leave rows without a label out"):
        number_labels({"train": make_rows([0, 1, -1, -2], INTEGER)}, "label")


@pytest.mark.parametrize(
    ("feature", "labels", "shown"),
    [
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
