"""The cache of a frozen prefix: equal losses, and what happens where it cannot be kept."""

import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first, quick_where
from PIL import Image
from plain_module import PlainModule
from safely import SAFELY
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1
from nc_finetune.backbones import TimmBackbone
from nc_finetune.callbacks import CollapseMonitor, PrefixCache
from nc_finetune.data import LabelledImages
from nc_finetune.methods import (
    FinetuningMethod,
    FullFinetuning,
    LayerFinetuning,
    LinearProbe,
    ProbeFirst,
    SkipConnectionFinetuning,
    SkipProbe,
)

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]

METHODS: dict[str, Callable[[], FinetuningMethod]] = {
    "linear_probe": LinearProbe,
    "skip_probe": lambda: SkipProbe(["layer1.0", "layer2.0"]),
    "layer_ft": lambda: LayerFinetuning("layer2.0"),
    "scl_ft": lambda: SkipConnectionFinetuning("layer2.0"),
    "early_skip": lambda: SkipConnectionFinetuning("layer3.0", skip_layers=["layer1.0", "layer2.0"], scale="matched"),
    "batch_norm": lambda: LayerFinetuning(["layer2.0", "layer3.0"], batch_norm="train"),
    "lp_ft": lambda: ProbeFirst(LayerFinetuning("layer3.0"), probe_epochs=1),
}


class Losses(L.Callback):
    """Every training loss, and every validation loss."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(outputs["loss"].item())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.val.append(trainer.callback_metrics["val/loss"].item())


class Flipped(Dataset[tuple[Tensor, int]]):
    """Random flips of a few images, as augmentation does it."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = torch.arange(3 * 32 * 32).view(3, 32, 32).remainder(7 + row).to(torch.uint8)
        return (image.flip(2) if torch.rand(()) < 0.5 else image), row % 3


def make_model(method: str = "scl_ft", net: str = "test_resnet", **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = TimmBackbone(net, None, {"drop_path_rate": 0.3} if net == "test_resnet" else {"img_size": 32})
    return ImageClassifier(backbone, 3, method=METHODS[method](), **options)


@pytest.fixture
def fit(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> Callable[..., Losses]:
    """Fit shuffled batches; the same seeds every time."""

    def run(model: ImageClassifier, *callbacks: L.Callback, dataset: Any = None, **options: Any) -> Losses:
        losses = Losses()
        plain = make_loader()
        train = DataLoader(dataset or plain.dataset, batch_size=4, shuffle=True)
        L.seed_everything(1, verbose=False)
        trainer = make_trainer(losses, *callbacks, **{"max_epochs": 2, **options})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer.fit(model, train, make_loader(seed=1, num_samples=6))
        return losses

    return run


@pytest.mark.parametrize("method", quick_where({"skip_probe", "scl_ft", "batch_norm", "lp_ft"}.__contains__, METHODS))
def test_losses_are_those_of_a_run_without_a_cache_to_the_last_bit(
    fit: Callable[..., Losses], method: str, tmp_path: Path
) -> None:
    plain = fit(make_model(method))
    in_memory, cache = make_model(method), PrefixCache()
    kept, filed = fit(in_memory, cache), fit(make_model(method), PrefixCache(str(tmp_path)))
    assert cache.stored_bytes.keys() == {"train", "val"}
    assert kept.train == filed.train == plain.train
    assert kept.val == filed.val == plain.val
    assert in_memory.split is None


def test_transformers_come_out_the_same(fit: Callable[..., Losses]) -> None:
    def model() -> ImageClassifier:
        torch.manual_seed(0)
        backbone = TimmBackbone("test_vit", None, {"img_size": 32, "drop_rate": 0.2})
        method = SkipConnectionFinetuning("blocks.3", skip_layers=["blocks.1", "blocks.4"])
        return ImageClassifier(backbone, 3, method=method)

    # A kernel may round otherwise in a batch of another size.
    assert fit(model(), PrefixCache()).train == pytest.approx(fit(model()).train, rel=1e-6)


def test_the_prefix_is_not_run_again(fit: Callable[..., Losses]) -> None:
    model = make_model()
    calls: list[int] = []
    model.backbone.get_layer("layer1.0").conv1.register_forward_hook(lambda *_: calls.append(1))
    fit(model, PrefixCache(), num_sanity_val_steps=0, max_epochs=1)
    once = len(calls)
    calls.clear()
    fit(model, PrefixCache(), num_sanity_val_steps=0, max_epochs=3)
    assert len(calls) == once > 0


def test_runs_share_a_folder(fit: Callable[..., Losses], tmp_path: Path) -> None:
    fit(make_model("scl_ft"), PrefixCache(str(tmp_path)))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    fit(make_model("layer_ft"), PrefixCache(str(tmp_path)))
    assert len(before) > 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("harm", quick_first(2, ["stale", "no meta", "truncated"]))
def test_a_broken_cache_is_computed_anew(fit: Callable[..., Losses], tmp_path: Path, harm: str) -> None:
    first = fit(make_model(), PrefixCache(str(tmp_path)))
    for path in tmp_path.rglob("0.bin"):
        if harm == "truncated":
            path.write_bytes(path.read_bytes()[:-4])
        elif harm == "stale":
            path.write_bytes(bytes(path.stat().st_size))
        else:
            (path.parent / "meta.json").unlink()
    with pytest.warns(UserWarning, match="truncated or stale"):
        second = fit(make_model(), PrefixCache(str(tmp_path)))
    assert second.train == first.train


def test_a_kill_leaves_nothing_that_is_read(fit: Callable[..., Losses], tmp_path: Path, monkeypatch: Any) -> None:
    from nc_finetune.cache import FileWriter

    def killed(self: FileWriter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FileWriter, "finish", killed)
        patch.setattr(FileWriter, "abandon", lambda self: None)  # not even that
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(make_model(), PrefixCache(str(tmp_path)))
    assert not list(tmp_path.rglob("meta.json"))
    assert fit(make_model(), PrefixCache(str(tmp_path))).train == fit(make_model()).train


def fit_until_killed(folder: str) -> None:
    from nc_finetune.cache import FileWriter

    append, written = FileWriter.append, []

    def killed(self: FileWriter, batch: Any) -> None:
        append(self, batch)
        written.append(1)
        if len(written) == 2:
            for file in self._files.values():
                file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    FileWriter.append = killed  # type: ignore[method-assign]
    fit_alone(folder)


def fit_alone(folder: str, barrier: Any = None) -> list[float]:
    """Fit as the fixture does, in a process of its own; wait for others before a store gets its name."""
    from nc_finetune.cache import FileWriter

    finish = FileWriter.finish

    def together(self: FileWriter) -> Any:
        barrier.wait(60)
        return finish(self)

    if barrier is not None:
        FileWriter.finish = together  # type: ignore[method-assign]
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (9, 3, 32, 32), generator=generator, dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images, torch.arange(9) % 3), batch_size=4, shuffle=True)
    losses = Losses()
    L.seed_everything(1, verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    caches = [PrefixCache(folder, splits=["train"])] if folder else []
    L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[losses, *caches], **quiet).fit(make_model(), loader)
    return losses.train


def fit_and_tell(folder: str, barrier: Any, told: Any) -> None:
    told.put(fit_alone(folder, barrier))


def test_a_run_that_was_killed_within_the_fill_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=fit_until_killed, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (partial_folder,) = tmp_path.iterdir()
    assert partial_folder.name.endswith(".tmp")
    assert sum(path.stat().st_size for path in partial_folder.iterdir()) > 0
    assert fit_alone(str(tmp_path)) == fit_alone("")
    whole = [path for path in tmp_path.iterdir() if path != partial_folder]
    assert len(whole) == 1
    times = {path: path.stat().st_mtime_ns for path in whole[0].iterdir()}
    assert fit_alone(str(tmp_path)) == fit_alone("")
    assert {path: path.stat().st_mtime_ns for path in whole[0].iterdir()} == times


def test_two_runs_fill_one_folder_at_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, told = fork.Barrier(2), fork.Queue()
    processes = [fork.Process(target=fit_and_tell, args=(str(tmp_path), barrier, told)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [told.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert found[0] == found[1] == fit_alone("")
    (kept,) = tmp_path.iterdir()  # neither run's leftovers
    assert (kept / "meta.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the system")
def test_a_file_that_cannot_grow_leaves_the_run_as_it_is(fit: Callable[..., Losses], tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    plain = fit(make_model())
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # of 9 * 8 kB
        with pytest.warns(UserWarning, match=r"File too large.*goes on without it") as caught:
            losses = fit(make_model(), PrefixCache(str(tmp_path), splits=["train"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert losses.train == plain.train
    assert len([warning for warning in caught if "PrefixCache" in str(warning.message)]) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_leaves_the_run_as_it_is(fit: Callable[..., Losses], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = PrefixCache(str(tmp_path / "file" / "cache"), splits=["train"])
    with pytest.warns(UserWarning, match="goes on without it") as caught:
        losses = fit(make_model(), cache)
    assert losses.train == fit(make_model()).train
    assert len([warning for warning in caught if "PrefixCache" in str(warning.message)]) == 1


def test_a_full_disk_leaves_the_run_as_it_is(fit: Callable[..., Losses], tmp_path: Path, monkeypatch: Any) -> None:
    from nc_finetune.cache import FileWriter

    def full(self: FileWriter, batch: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileWriter, "append", full)
    with pytest.warns(UserWarning, match="No space left"):
        losses = fit(make_model(), PrefixCache(str(tmp_path)))
    assert losses.train == fit(make_model()).train
    assert not list(tmp_path.iterdir())


def test_what_is_larger_than_the_budget_is_not_kept(fit: Callable[..., Losses]) -> None:
    # 9 images, 8 x 8 maps of 32 channels and a label.
    needed = 9 * (32 * 8 * 8 * 4 + 8)
    fitting = PrefixCache(budget_gb=needed / 1e9, splits=["train"])
    fit(make_model(), fitting)
    assert fitting.stored_bytes == {"train": needed}
    with pytest.warns(UserWarning, match="room for .* raise budget_gb"):
        losses = fit(make_model(), PrefixCache(budget_gb=(needed - 1) / 1e9, splits=["train"]))
    assert losses.train == fit(make_model()).train


def test_bfloat16_takes_half_the_room_and_rounds(fit: Callable[..., Losses]) -> None:
    full, half = PrefixCache(splits=["train"]), PrefixCache(splits=["train"], dtype="bfloat16")
    exact, rounded = fit(make_model(), full).train, fit(make_model(), half).train
    assert half.stored_bytes["train"] - 9 * 8 == (full.stored_bytes["train"] - 9 * 8) // 2
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_random_transforms_are_left_alone_with_a_hint_to_views(fit: Callable[..., Losses]) -> None:
    cache = PrefixCache(splits=["train"])
    with pytest.warns(UserWarning, match=r"the dataset gives other samples .*views=8.* goes on without it"):
        kept = fit(make_model(), cache, dataset=Flipped())
    assert cache.stored_bytes == {}
    assert kept.train == fit(make_model(), dataset=Flipped()).train


def test_views_come_in_turn(fit: Callable[..., Losses]) -> None:
    cache = PrefixCache(views=2, splits=["train"])
    seen: list[Tensor] = []

    class Look(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            rows = trainer.train_dataloader.dataset
            seen.append(rows[0][0]["layer2.0"])

    fit(make_model(), cache, Look(), dataset=Flipped(), max_epochs=4)
    assert cache.stored_bytes["train"] == 2 * 8 * (32 * 8 * 8 * 4 + 8)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


def test_full_fine_tuning_goes_on_without(fit: Callable[..., Losses], make_loader: LoaderFactory) -> None:
    model = ImageClassifier(TimmBackbone("test_resnet", None), 3, method=FullFinetuning())
    with pytest.warns(UserWarning, match="no frozen prefix"):
        fit(model, PrefixCache(), max_epochs=1)


def test_measured_layers_are_the_same(fit: Callable[..., Losses]) -> None:
    plain = LayerwiseNC1(split=("train", "val"))
    fit(make_model(), plain)
    beside = LayerwiseNC1(split=("train", "val"))
    cache = PrefixCache()
    fit(make_model(), beside, cache)
    assert beside.history == plain.history
    assert cache.stored_bytes.keys() == {"train"}  # the validation loop is measured on images


def test_both_measuring_callbacks_see_the_same_beside_a_cache(fit: Callable[..., Losses]) -> None:
    def run(*caches: L.Callback) -> tuple[list[Any], list[Any], Losses]:
        monitor, nc1 = CollapseMonitor(every_n_epochs=1), LayerwiseNC1(every_n_epochs=1)
        losses = fit(make_model(), monitor, nc1, *caches)
        return monitor.history, nc1.history, losses

    kept, plain = run(PrefixCache()), run()
    assert len(plain[0]) == len(plain[1]) == 2
    assert kept[:2] == plain[:2]
    assert kept[2].train == plain[2].train


def test_a_run_resumes_from_its_checkpoint(
    fit: Callable[..., Losses], make_trainer: TrainerFactory, make_loader: LoaderFactory, tmp_path: Path
) -> None:
    def train(epochs: int, path: Path | None = None) -> tuple[Losses, L.Trainer]:
        losses = Losses()
        L.seed_everything(1, verbose=False)
        trainer = make_trainer(losses, PrefixCache(str(tmp_path / "cache")), max_epochs=epochs)
        trainer.fit(make_model(optimizer=torch.optim.SGD), make_loader(), ckpt_path=path, **SAFELY)
        return losses, trainer

    _, trainer = train(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = train(3, tmp_path / "two.ckpt")
    assert len(resumed.train) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the tuned block is no part of the key


def test_the_key_knows_images_and_weights(
    fit: Callable[..., Losses], make_loader: LoaderFactory, tmp_path: Path
) -> None:
    fit(make_model(), PrefixCache(str(tmp_path), splits=["train"]))
    fit(make_model(), PrefixCache(str(tmp_path), splits=["train"]), dataset=make_loader(seed=5).dataset)
    other = make_model()
    with torch.no_grad():
        other.backbone.get_layer("layer1.0").conv1.weight.mul_(2)
    fit(other, PrefixCache(str(tmp_path), splits=["train"]))
    metas = [json.loads(path.read_text()) for path in tmp_path.rglob("meta.json")]
    assert [meta["rows"] for meta in metas] == [9, 9, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_gb": 0}, "budget_gb must be above 0, got 0"),
        ({"views": -1}, "views must be above 0"),
        ({"dtype": "int8"}, "'bfloat16', or None"),
        ({"splits": ["tests"]}, "unknown split 'tests'; did you mean 'test'?"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixCache(**options)


def test_other_modules_are_refused(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    with pytest.raises(TypeError, match="needs an ImageClassifier, got PlainModule"):
        make_trainer(PrefixCache()).fit(PlainModule(), make_loader())


@pytest.mark.parametrize("join", quick_first(1, ["before_norm", "normed_feature", "feature"]))
def test_a_skip_probe_is_kept_wherever_its_skips_join(fit: Callable[..., Losses], join: Any) -> None:
    def model() -> ImageClassifier:
        torch.manual_seed(0)
        method = SkipProbe(["blocks.1"], "learned", join=join, pooling="average")
        return ImageClassifier(TimmBackbone("test_vit", None, {"img_size": 32}), 3, method=method)

    cache = PrefixCache()
    assert fit(model(), cache).train == pytest.approx(fit(model()).train, rel=1e-6)
    assert cache.stored_bytes.keys() == {"train", "val"}


@pytest.mark.parametrize("transform", [None, lambda image: image.flip(2) if torch.rand(()) < 0.5 else image])
def test_image_data_come_in_their_own_order(make_trainer: TrainerFactory, transform: Any) -> None:
    def run(*callbacks: L.Callback) -> list[float]:
        L.seed_everything(2, verbose=False)
        torch.manual_seed(0)
        model = ImageClassifier(TimmBackbone("test_resnet", None), 10, method=LayerFinetuning("layer2.0"))
        data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, val_size=20, transform=transform)
        losses = Losses()
        make_trainer(losses, *callbacks, max_epochs=2).fit(model, datamodule=data)
        return losses.train

    kept, plain = run(PrefixCache(views=None if transform is None else 3)), run()
    assert len(kept) == len(plain) == 2
    assert (kept == plain) == (transform is None)


def test_images_that_do_not_decode_are_left_to_the_loader(fit: Callable[..., Losses]) -> None:
    class Gaps(Flipped):
        def __getitems__(self, rows: list[int]) -> list[Any]:
            torch.manual_seed(0)
            return [(torch.full((3, 32, 32), row, dtype=torch.uint8), row % 3) for row in rows if row != 6]

    with pytest.warns(UserWarning, match="1 images do not decode"):
        fit(make_model(), PrefixCache(splits=["train"], views=1), dataset=Gaps(), max_epochs=1)


def test_the_loader_is_given_back(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            raise RuntimeError("planted")

    for callbacks in ([], [Stop()]):
        loader = make_loader()
        before = dict(loader.__dict__)
        try:
            make_trainer(PrefixCache(), *callbacks).fit(make_model(), loader)
        except RuntimeError as error:
            assert callbacks and "planted" in str(error)  # noqa: PT017, PT018
        assert loader.__dict__ == before
        assert next(iter(loader))[0].shape == (4, 3, 32, 32)


def test_a_run_that_stopped_within_an_epoch_goes_on_there(make_trainer: TrainerFactory, tmp_path: Path) -> None:
    def run(steps: int, path: Path | None = None) -> tuple[list[float], L.Trainer]:
        L.seed_everything(2, verbose=False)
        method = LayerFinetuning("layer2.0")
        model = ImageClassifier(TimmBackbone("test_resnet", None), 10, method=method, optimizer=torch.optim.SGD)
        data = ImageData("sklearn:digits", image_size=32, samples_per_class=2, val_size=20, batch_size=4)
        losses = Losses()
        trainer = make_trainer(losses, PrefixCache(), max_steps=steps, max_epochs=-1, limit_val_batches=0)
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=False)
        return losses.train, trainer

    first, trainer = run(3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    rest, _ = run(7, tmp_path / "three.ckpt")
    whole, _ = run(7)
    assert len(first) == 3
    assert len(rest) == 4
    # The schedule ends elsewhere, the images are the same: compare the first loss, before any step at another rate.
    assert rest[0] == pytest.approx(whole[3], rel=1e-2)


def test_mixed_precision_comes_out_the_same(fit: Callable[..., Losses]) -> None:
    plain, kept = (fit(make_model(), *caches, precision="bf16-mixed").train for caches in ([], [PrefixCache()]))
    assert kept == pytest.approx(plain, rel=1e-6)


def test_a_fused_optimizer_comes_out_the_same(fit: Callable[..., Losses]) -> None:
    fused = partial(torch.optim.AdamW, fused=True)
    plain, kept = (fit(make_model(optimizer=fused), *caches).train for caches in ([], [PrefixCache()]))
    assert kept == plain


def test_images_that_are_known_are_decoded_once_for_the_cache_and_never_for_what_is_there(
    make_trainer: TrainerFactory, tmp_path: Path, monkeypatch: Any
) -> None:
    decoded: list[int] = []
    decode = LabelledImages._decoded
    monkeypatch.setattr(LabelledImages, "_decoded", lambda self, row: decoded.append(row) or decode(self, row))

    def run(**options: Any) -> int:
        L.seed_everything(2, verbose=False)
        model = ImageClassifier("test_resnet", 10, weights=None, method=LayerFinetuning("layer2.0"))
        data = ImageData("sklearn:digits", samples_per_class=4, val_size=20, **{"image_size": 32, **options})
        decoded.clear()
        make_trainer(PrefixCache(str(tmp_path), splits=["train"]), limit_val_batches=0).fit(model, datamodule=data)
        return len(decoded)

    tried = 50  # first images: for shapes, for the cut, for what is random, and for the number of workers
    assert 40 <= run() <= 40 + tried
    assert run() <= tried
    assert len(list(tmp_path.iterdir())) == 1
    for other in ({"image_size": 48}, {"seed": 1}, {"interpolation": "nearest"}):
        assert run(**other) >= 40
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_there_already_needs_no_room(fit: Callable[..., Losses], tmp_path: Path) -> None:
    fit(make_model(), PrefixCache(str(tmp_path), splits=["train"]))
    cache = PrefixCache(str(tmp_path), splits=["train"], budget_gb=1e-9)
    fit(make_model(), cache)
    assert cache.stored_bytes["train"] > 0


def test_a_file_that_was_written_anew_is_not_mistaken_for_the_one_before(
    make_trainer: TrainerFactory, tmp_path: Path
) -> None:
    for number in range(12):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.bmp"  # all of one size
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(path)

    def stores() -> int:
        model = ImageClassifier("test_resnet", 2, weights=None, method=LayerFinetuning("layer2.0"))
        data = ImageData(str(tmp_path / "images"), image_size=32, val_size=2, test_size=2)
        cache = PrefixCache(str(tmp_path / "cache"), splits=["train"])
        make_trainer(cache, limit_val_batches=0).fit(model, datamodule=data)
        return len(list((tmp_path / "cache").iterdir()))

    torch.manual_seed(0)
    assert stores() == 1
    torch.manual_seed(0)
    assert stores() == 1
    for path in (tmp_path / "images").rglob("*.bmp"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    torch.manual_seed(0)
    assert stores() == 2


class OwnSteps(ImageClassifier):
    """Somebody's own steps, which call the model and begin validation without ours."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_validation_start(self) -> None:
        pass


def test_steps_of_a_subclass_take_what_was_kept(make_trainer: TrainerFactory, make_loader: LoaderFactory) -> None:
    found = []
    for callbacks in ([], [PrefixCache()]):
        torch.manual_seed(0)
        model = OwnSteps("test_resnet", 3, weights=None, method=LayerFinetuning("layer3.0"))
        make_trainer(*callbacks, max_epochs=2).fit(model, make_loader(), make_loader())
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
