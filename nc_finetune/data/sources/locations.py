"""Where images come from: built-in sets, named sets, local folders and tables, the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nc_finetune._common.terminal import say
from nc_finetune.data.columns.label_tables import TABLE_ENDINGS
from nc_finetune.data.sources.folders import read_folder, read_table
from nc_finetune.data.sources.named_sets import NAMED_SETS, Found, is_named, load_named
from nc_finetune.errors import missing_extra, unknown_name

if TYPE_CHECKING:
    import datasets

BUILT_IN = ("sklearn:digits",)
_PATIENCE = 10.0  # seconds for the first answer of the hub


def find_splits(
    source: str, image_column: str | None = None, label_column: str | None = None, labels_needed: bool = True
) -> Found:
    """Find the rows of a source by split, before anything is known of their labels.

    Columns are given or found; where labels are needed, a table of labels without a column of them is an error.

    Returns:
        HF datasets by split, and the columns where they are known.
    """
    if source in BUILT_IN:
        return _digits()
    if source.startswith("sklearn:"):
        raise unknown_name("built-in data", source, BUILT_IN)
    if is_named(source):
        return load_named(source, _load_hub)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return Found(read_folder(path, image_column, label_column), None, None)
        if path.is_file() and path.suffix.lower() in TABLE_ENDINGS:
            return Found(read_table(path, image_column, label_column, labels_needed), None, None)
        is_file = path.exists()
    except PermissionError as error:
        raise PermissionError(f"no permission to read {error.filename or path}; change it or copy the data") from error
    if is_file:
        raise NotADirectoryError(f"{source!r} is a file; give the folder that it is in")
    if path.is_absolute() or not _may_be_hub_id(source):
        raise FileNotFoundError(f"no folder of images or tables at {source!r}")
    say(f"there is no folder {source!r} here; asking the hub")
    return _hub(source)


def _digits() -> Found:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak 1998, 10.24432/C50P49)."""
    import datasets as hf
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "offline", "the data 'sklearn:digits'") from error
    digits = load_digits()
    images = [np.asarray(image * (255 / 16)).round().astype(np.uint8) for image in digits.images]
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=[str(digit) for digit in range(10)])})
    rows = hf.Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)
    return Found({"train": rows}, "image", "label")


def _may_be_hub_id(source: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # exported by no list

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _load_hub(source: str) -> dict[str, datasets.Dataset]:
    """Load a data set of the hub, or of the hub's cache, by its id.

    A hub that does not answer is asked once: by itself `datasets` tries six times, for half a minute.
    """
    import datasets as hf

    failure = _failure_to_reach_hub(source)
    if failure is None:
        return dict(hf.load_dataset(source))
    offline, hf.config.HF_HUB_OFFLINE = hf.config.HF_HUB_OFFLINE, True  # for its cache alone
    try:
        return dict(hf.load_dataset(source))
    except Exception as error:
        raise ConnectionError(f"it cannot be reached ({failure}), and its cache has no such data set") from error
    finally:
        hf.config.HF_HUB_OFFLINE = offline


def _failure_to_reach_hub(source: str) -> Exception | None:
    """Ask the hub for a data set, and return why there is no answer; any answer will do."""
    import datasets as hf
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi(endpoint=hf.config.HF_ENDPOINT).dataset_info(source, timeout=_PATIENCE)
    except HfHubHTTPError:  # what it says of the data set, `datasets` tells, too
        return None
    except Exception as error:  # those of its HTTP library, which changes
        return error
    return None


def _hub(source: str) -> Found:
    try:
        return Found(_load_hub(source), None, None)
    except Exception as error:  # the hub client has many kinds
        raise ValueError(
            f"{source!r} is neither a known name ({', '.join((*BUILT_IN, *NAMED_SETS))}) nor an existing folder, and"
            f" could not be loaded from the hub: {error}\nWithout a network: run"
            f" 'hf download --repo-type dataset {source} --local-dir DIR' where there is one, and give DIR as source"
        ) from error
