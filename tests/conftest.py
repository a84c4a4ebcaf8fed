"""What all tests share. The process that deals them out reads this, too, and imports nothing that takes long."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from _pytest.mark.structures import ParameterSet

if TYPE_CHECKING:
    import lightning as L
    from torch.utils.data import DataLoader

LoaderFactory = Callable[..., "DataLoader[Any]"]
TrainerFactory = Callable[..., "L.Trainer"]
Parameter = TypeVar("Parameter")
# One server forks all processes that tests need: it imports what takes them long, once, and has no threads of its own.
PRELOADED = [
    "datasets",
    "lightning.pytorch.cli",
    "nc_finetune.callbacks",
    "nc_finetune.classifier",
    "nc_finetune.data",
    "nc_finetune.run.grid",
    "nc_finetune.selection",
    "sklearn.datasets",
]
# For processes that tests start, and for Lightning, which sets the number of threads where the environment does not.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def quick_where(wanted: Callable[[Parameter], object], values: Iterable[Parameter]) -> list[Any]:
    """Return the parameters of a test, marked as slow but for those that are wanted whenever tests run."""
    return [value if wanted(value) else _slow(value) for value in values]


def quick_first(number: int, values: Iterable[Parameter]) -> list[Any]:
    """Return the parameters of a test, marked as slow but for the first few: one of every kind stands in front."""
    return [value if place < number else _slow(value) for place, value in enumerate(values)]


def _slow(value: Any) -> Any:
    if isinstance(value, ParameterSet):
        return pytest.param(*value.values, marks=[*value.marks, pytest.mark.slow], id=value.id)
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)


def pytest_configure() -> None:
    """Name what the server of processes imports, before any test starts it."""
    multiprocessing.set_forkserver_preload(PRELOADED)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks this small gain nothing from more, and lose ten times over where another process computes."""
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same random weights in every run, whichever test ran before and whoever builds a fixture first."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed keeps the whole stack of calls where there is no GPU
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector, which runs of a grid call, need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _digits_are_encoded_once() -> Iterator[None]:
    """Rows do not change, and a fifth of a second for each test that looks at a few of them is a long time."""
    from nc_finetune.data.sources import locations

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locations, "_digits", functools.cache(locations._digits))
        yield


@pytest.fixture(autouse=True, scope="session")
def _the_hub_is_not_asked() -> Iterator[None]:
    """Tests that put something in place of what loads its data sets need no network for it."""
    from nc_finetune.data.sources import locations

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locations, "_failure_to_reach_hub", lambda source: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _the_drawing_library_is_bundled_once() -> Iterator[None]:
    """Two seconds for every page of a report, all with the same library in it."""
    with contextlib.suppress(ImportError), pytest.MonkeyPatch.context() as patch:
        import vl_convert

        patch.setattr(vl_convert, "javascript_bundle", functools.cache(vl_convert.javascript_bundle))
        yield
        return
    yield


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """Lightning leaves its process group standing, and whoever synchronises in a forked process waits for it.

    It leaves the variables that name ranks, too: a command that a later test starts would take itself for one of
    several processes that somebody else has started, and wait for the others.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            patch.setenv(name, "")  # so that what is there after the test goes away
            patch.delenv(name)
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def import_policy() -> dict[str, Any]:
    """As it is before any command: fixtures of a whole file run commands, too."""
    from jsonargparse._common import parsing_settings

    return {name: copy.copy(parsing_settings[name]) for name in ("import_path_verdicts", "import_paths_enforced")}


@pytest.fixture(autouse=True)
def _own_import_policy(monkeypatch: pytest.MonkeyPatch, import_policy: dict[str, Any]) -> None:
    """Commands restrict what files may name for the rest of their process; a test is not the rest of another."""
    from jsonargparse._common import parsing_settings

    for name, value in import_policy.items():
        monkeypatch.setitem(parsing_settings, name, copy.copy(value))


@pytest.fixture
def make_loader() -> LoaderFactory:
    """Random images in a fixed order; 9 in batches of 4 by default, so that the last batch is smaller."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    def make(num_samples: int = 9, num_classes: int = 3, batch_size: int = 4, seed: int = 0) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (num_samples, 3, 32, 32), generator=generator, dtype=torch.uint8)
        labels = torch.randint(num_classes, (num_samples,), generator=generator)
        return DataLoader(TensorDataset(images, labels), batch_size=batch_size)

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> TrainerFactory:
    """A quiet trainer on the CPU that writes nothing unless asked."""
    import lightning as L

    def make(*callbacks: L.Callback, **options: Any) -> L.Trainer:
        defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
        quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
        return L.Trainer(callbacks=list(callbacks), **{**defaults, **quiet, **options})

    return make
