"""Data sets that have a short name: where their files belong, and what they are on the hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_finetune.data.sources import published_layouts as layouts
from nc_finetune.data.sources.folders import read_folder
from nc_finetune.errors import check_name

if TYPE_CHECKING:
    import datasets

FOLDER_VARIABLE = "NC_FINETUNE_DATA"
PACKAGED = Path("/usr/share/datasets")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """What is known of a data set.

    Attributes:
        hub_id: Its id on the HF hub.
        image: Column of its images there.
        label: Column of its labels there, by variant; the first variant is the default.
        variants: Its other editions, which only the authors' files have.
        archive: What to download from its authors.
        marker: A file of the authors' layout, by which it is recognised.
        read: Reads that layout.
        class_names: Names of integer labels that come without.
        package: Debian's package of it, and its folder in ``/usr/share/datasets``.
        source: Who made it.
    """

    hub_id: str
    image: str
    label: dict[str, str]
    archive: str
    marker: str
    read: layouts.Reader
    variants: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    package: tuple[str, str] | None = None
    source: str

    @property
    def all_variants(self) -> tuple[str, ...]:
        """Every variant, the default first."""
        return (*self.label, *self.variants)


def _read_idx(folder: Path, _: str) -> dict[str, datasets.Dataset]:
    return read_folder(folder)


NAMED_SETS = {
    "cifar10": NamedSet(
        hub_id="uoft-cs/cifar10",
        image="img",
        label={"": "label"},
        archive="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        marker="data_batch_1.bin",
        read=layouts.read_cifar10,
        source="Krizhevsky 2009: 10 classes; train 50,000, test 10,000",
    ),
    "cifar100": NamedSet(
        hub_id="uoft-cs/cifar100",
        image="img",
        label={"fine": "fine_label", "coarse": "coarse_label"},
        archive="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        marker="fine_label_names.txt",
        read=layouts.read_cifar100,
        source="Krizhevsky 2009: 100 classes, or 20 coarse ones; train 50,000, test 10,000",
    ),
    "fgvc_aircraft": NamedSet(
        hub_id="HuggingFaceM4/FGVC-Aircraft",
        image="image",
        label={"variant": "variant", "family": "family", "manufacturer": "manufacturer"},
        archive="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        marker="images_variant_train.txt",
        read=layouts.read_aircraft,
        source="Maji et al. 2013, arXiv:1306.5151: 100 variants, 70 families or 30 manufacturers; 3,334/3,333/3,333",
    ),
    "dtd": NamedSet(
        hub_id="tanganke/dtd",
        image="image",
        label={"1": "label"},
        variants=tuple(str(fold) for fold in range(2, 11)),
        archive="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        marker="labels/train1.txt",
        read=layouts.read_dtd,
        source="Cimpoi et al. 2014, arXiv:1311.3618: 47 classes; ten folds of 1,880/1,880/1,880",
    ),
    "oxford_pets": NamedSet(
        hub_id="timm/oxford-iiit-pet",
        image="image",
        label={"breed": "label", "species": "label_cat_dog"},
        archive="https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz and .../annotations.tar.gz",
        marker="annotations/trainval.txt",
        read=layouts.read_pets,
        source="Parkhi et al. 2012, 10.1109/CVPR.2012.6248092: 37 breeds or 2 species; train 3,680, test 3,669",
    ),
    "fashion_mnist": NamedSet(
        hub_id="zalando-datasets/fashion_mnist",
        image="image",
        label={"": "label"},
        archive="https://github.com/zalandoresearch/fashion-mnist (data/fashion)",
        marker="train-images-idx3-ubyte*",
        read=_read_idx,
        class_names=_FASHION,
        package=("dataset-fashion-mnist", "fashion-mnist"),
        source="Xiao et al. 2017, arXiv:1708.07747: 10 classes of 28 px grey images; train 60,000, test 10,000",
    ),
}


@dataclass(frozen=True)
class Found:
    """Splits, the columns to take, and names for integer labels that have none."""

    splits: dict[str, datasets.Dataset]
    image: str | None
    label: str | None
    class_names: tuple[str, ...] | None = None


def data_folder() -> Path:
    """Return where files of named data sets belong: ``$NC_FINETUNE_DATA``, or ``~/.cache/nc_finetune``."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "nc_finetune"


def is_named(source: str) -> bool:
    """Tell whether a source is a data set of this list, with or without a variant."""
    return source.partition(":")[0] in NAMED_SETS


def load_named(source: str, from_hub: Callable[[str], dict[str, Any]]) -> Found:
    """Find a data set by its short name: in its folder or a distribution's, else on the hub or in the hub's cache.

    Args:
        source: The name, or ``name:variant``, e.g. ``"dtd:7"`` for the seventh fold.
        from_hub: Loads splits by the id of a data set on the hub.

    Returns:
        Splits and columns.

    Raises:
        ValueError: If the variant is unknown, or the files are neither there nor on the hub; the message says what to
            download and where to put it.
    """
    name, _, variant = source.partition(":")
    known = NAMED_SETS[name]
    variant = variant or known.all_variants[0]
    check_name(f"variant of {name}", variant, known.all_variants)
    here = Path(name) if Path(name).is_dir() else data_folder() / name
    if here.is_dir():
        return _from_folder(known, here, variant)
    if known.package is not None and (packaged := PACKAGED / known.package[1]).is_dir():
        return _from_folder(known, packaged, variant)
    if variant not in known.label:
        raise ValueError(f"the hub has {name} in the variant {', '.join(known.label)} alone; {_advice(name, here)}")
    try:
        return Found(from_hub(known.hub_id), known.image, known.label[variant], known.class_names)
    except Exception as error:  # the hub client has many kinds
        raise ValueError(
            f"{name} is not in {here}, and the hub cannot be read: {error}\n{_advice(name, here)}"
        ) from error


def _from_folder(known: NamedSet, folder: Path, variant: str) -> Found:
    layout = layouts.find_layout(folder, known.marker)
    if layout is None:
        _refuse_pickles(folder)
        if variant not in known.label:
            raise ValueError(f"{folder} has no {known.marker}, which names the variant {variant}; get {known.archive}")
        found = read_folder(folder)
        label = known.label[variant]
        has = {name for rows in found.values() for name in rows.column_names}
        # A folder of images has columns of our own.
        return Found(found, known.image if known.image in has else None, label if label in has else None, None)
    try:
        return Found(known.read(layout, variant), None, None, known.class_names)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing; unpack {known.archive} into {folder} again") from error


def _refuse_pickles(folder: Path) -> None:
    if layouts.find_layout(folder, "data_batch_1") or layouts.find_layout(folder, "meta"):
        raise ValueError(f"{folder} holds CIFAR's Python edition: pickles, which are never loaded; get the binary one")


def _advice(name: str, folder: Path) -> str:
    known = NAMED_SETS[name]
    package = "" if known.package is None else f", or install Debian's package {known.package[0]}"
    return (
        f"Download {known.archive} and unpack it into {folder} (or into ${FOLDER_VARIABLE}/{name}){package}, or, where"
        f" there is a network: hf download --repo-type dataset {known.hub_id} --local-dir {folder}"
    )
