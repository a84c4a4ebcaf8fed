"""What splits are called, wherever it is written: names of splits, folders and files, and cells of a table."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
# Splits whose images nobody has labelled: not for training, but for predicting.
UNLABELLED_NAMES = ("unlabelled", "unlabeled", "unsupervised", "predict", "prediction", "inference")
UNLABELLED = "unlabelled"
_MEANING = {alias: split for split, aliases in SPLIT_NAMES.items() for alias in aliases} | dict.fromkeys(
    UNLABELLED_NAMES, UNLABELLED
)
# Words that say nothing of which split it is: "Training Set", "test_images".
_FILLERS = {"set", "split", "data", "images", "imgs", "dataset", "subset"}


def plain(name: str) -> str:
    """Return a name without what is hardly seen: case, full width, marks of no width, spaces at its ends or doubled.

    Example:
        >>> plain(" Ｔｒａｉｎ  Set ")
        'train set'
    """
    seen = "".join(mark for mark in unicodedata.normalize("NFKC", name) if unicodedata.category(mark) != "Cf")
    return " ".join(seen.split()).casefold()


def words_of(name: str) -> list[str]:
    """Return the words of a name: ``"HoldOut-02"`` has ``"holdout"``, ``"hold_out"`` has ``"hold"`` and ``"out"``."""
    return re.findall("[a-z]+", plain(name))


def camel_words(name: str) -> list[str]:
    """Return the words of a name in which capitals may begin them: ``"PublicTest"`` has ``"public"`` and ``"test"``."""
    return words_of(re.sub("(?<=[a-z])(?=[A-Z])", " ", name))


def split_of(name: str) -> str | None:
    """Tell which split a name stands for.

    Returns:
        ``"train"``, ``"val"``, ``"test"`` or ``"unlabelled"``; ``None`` where it stands for none of them.

    Example:
        >>> split_of("Train "), split_of("hold-out"), split_of("test_images"), split_of("cat")
        ('train', 'test', 'test', None)
    """
    if re.search(r"\d", name):
        return None
    words = words_of(name)
    whole = "".join(words)
    short = "".join(word for word in words if word not in _FILLERS)
    found = (whole, short, whole.removesuffix("set"))
    return next((_MEANING[text] for text in found if text in _MEANING), None)


def split_in(words: Iterable[str]) -> str | None:
    """Return the split that the first word stands for that stands for one: of the name of a file of a split."""
    return next((_MEANING[word] for word in words if word in _MEANING), None)


def by_split(names: Iterable[str]) -> dict[str, str]:
    """Tell which name stands for which split; case and spaces around make no difference.

    Args:
        names: Names of splits or folders; those that stand for no split are left out.

    Returns:
        The name of ``"train"``, ``"val"``, ``"test"`` and ``"unlabelled"``, as far as they occur.

    Raises:
        ValueError: If two names stand for the same split.

    Example:
        >>> by_split(["dev", "Train", "extra"])
        {'train': 'Train', 'val': 'dev'}
    """
    known = [(name, split_of(name)) for name in names]
    found = {split: [name for name, meant in known if meant == split] for split in (*SPLIT_NAMES, UNLABELLED)}
    for split, same in found.items():
        if len(same) > 1:
            raise ValueError(f"{' and '.join(map(repr, same))} both name the {split} split; rename or remove one")
    return {split: same[0] for split, same in found.items() if same}
