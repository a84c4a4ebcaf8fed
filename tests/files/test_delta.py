import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_first
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_finetune import ImageClassifier, ImageData, load_delta, save_delta
from nc_finetune.backbones import TimmBackbone, weights_hash
from nc_finetune.deployment.load import load_model
from nc_finetune.files.delta import METADATA_KEY, read_delta, record_base, tuned_state
from nc_finetune.methods import FullFinetuning, LayerFinetuning, LinearProbe, SkipConnectionFinetuning

LoaderFactory = Callable[..., DataLoader[Any]]
TrainerFactory = Callable[..., L.Trainer]

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "test_resnet": ("layer2.0", {}),
    "test_vit": ("blocks.3", {"img_size": 32}),
    "tf_efficientnet_lite0": ("blocks.3.0", {}),
}
METHODS: dict[str, Callable[..., Any]] = {
    "linear_probe": lambda key, **options: LinearProbe(),
    "layer_ft": LayerFinetuning,
    "scl_ft": SkipConnectionFinetuning,
    "full_ft": lambda key, **options: FullFinetuning(**options),
}
every_net = pytest.mark.parametrize("net", NETS)
every_method = pytest.mark.parametrize("method", METHODS)


class GainedLinear(nn.Linear):
    """A head of somebody else's, with weights and a buffer of its own."""

    def __init__(self, in_features: int, out_features: int, gain: float = 2.0) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("gain", torch.tensor(gain))

    def forward(self, features: Tensor) -> Tensor:
        gain: Tensor = self.gain
        return gain * super().forward(features)


class TiedHead(nn.Module):
    """Two names for one weight, and a weight that is a view of another's storage."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        whole = torch.randn(in_features, 2 * out_features)
        self.first = nn.Parameter(whole[:, :out_features])
        self.second = nn.Parameter(whole[:, out_features:])
        self.again = self.first

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.first + features @ self.second


def make_model(net: str, method: str, seed: int = 0, num_classes: int = 3, **options: Any) -> ImageClassifier:
    key, model_options = NETS[net]
    head = options.pop("head", nn.Linear)
    torch.manual_seed(seed)
    backbone = TimmBackbone(net, None, model_options)
    return ImageClassifier(backbone, num_classes, method=METHODS[method](key, **options), head=head)


def disturb(model: ImageClassifier) -> ImageClassifier:
    """Change everything that is tuned, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in tuned_state(model).values():
            if value.is_floating_point():
                value += 0.1 * torch.rand(value.shape, generator=generator)
    return model


def logits(model: ImageClassifier) -> Tensor:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        result: Tensor = model.eval()(images)
    return result


@every_net
@every_method
def test_reloaded_logits_are_bit_identical_and_the_file_is_small(net: str, method: str, tmp_path: Path) -> None:
    trained = disturb(make_model(net, method))
    save_delta(trained, tmp_path / "it.safetensors")
    fresh = make_model(net, method)
    assert not torch.equal(logits(fresh), logits(trained))
    assert load_delta(tmp_path / "it.safetensors", fresh) is fresh
    assert torch.equal(logits(fresh), logits(trained))
    parts = (trained.backbone, trained.head)
    full_size = sum(value.nbytes for part in parts for value in part.state_dict().values())
    share = trained.tuned_parameters / trained.total_parameters
    assert (tmp_path / "it.safetensors").stat().st_size <= share * full_size + 64 * 1024


@pytest.mark.parametrize("net", quick_first(1, ["test_resnet", "tf_efficientnet_lite0"]))
@pytest.mark.parametrize("method", ["layer_ft", "scl_ft", "full_ft"])
def test_trained_statistics_of_batch_norm_travel(
    net: str, method: str, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    trained = make_model(net, method, batch_norm="train")
    make_trainer(max_epochs=1).fit(trained, make_loader(8))
    save_delta(trained, tmp_path / "it.safetensors")
    loaded = load_delta(tmp_path / "it.safetensors", make_model(net, method, batch_norm="train"))
    assert weights_hash(loaded.backbone.model) == weights_hash(trained.backbone.model)
    assert weights_hash(loaded.backbone.model) != weights_hash(make_model(net, method).backbone.model)
    assert torch.equal(logits(loaded), logits(trained))


def test_only_the_block_and_the_head_are_in_the_file(tmp_path: Path) -> None:
    save_delta(make_model("test_resnet", "layer_ft"), tmp_path / "it.safetensors")
    names = set(read_delta(tmp_path / "it.safetensors").tensors)
    block = TimmBackbone("test_resnet", None).model.get_submodule("layer2.0").state_dict()
    assert names == {f"backbone.model.layer2.0.{name}" for name in block} | {"head.weight", "head.bias"}


def test_model_is_built_from_the_file(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    torch.manual_seed(5)
    save_file(TimmBackbone("test_vit", None, {"img_size": 32}).model.state_dict(), base)
    backbone = TimmBackbone("test_vit", str(base), {"img_size": 32})
    method = SkipConnectionFinetuning("blocks.2", scale=0.5)
    trained = disturb(ImageClassifier(backbone, 3, method=method, head=partial(nn.Linear, bias=False)))
    save_delta(trained, tmp_path / "it.safetensors", class_names=["cat", "dog", "owl"])
    loaded, config = load_model(tmp_path / "it.safetensors")
    assert torch.equal(logits(loaded), logits(trained))
    assert config.class_names == ["cat", "dog", "owl"]
    assert config.preprocessing["image_size"] == backbone.preprocessing.image_size
    assert not loaded.training


def test_base_hash_is_that_before_training(tmp_path: Path) -> None:
    model = make_model("test_resnet", "layer_ft")
    before = weights_hash(model.backbone.model)
    record_base(model)
    disturb(model)
    record_base(model)
    save_delta(model, tmp_path / "it.safetensors")
    assert read_delta(tmp_path / "it.safetensors").base_sha256 == before != weights_hash(model.backbone.model)


@pytest.mark.parametrize("method", ["linear_probe", "layer_ft", "scl_ft"])
def test_wrong_base_is_refused_with_both_hashes_and_nothing_changes(method: str, tmp_path: Path) -> None:
    save_delta(disturb(make_model("test_resnet", method)), tmp_path / "it.safetensors")
    other = make_model("test_resnet", method, seed=1)
    before = logits(other)
    with pytest.raises(ValueError, match=r"another base.*SHA-256 [0-9a-f]{64}.*have [0-9a-f]{64}"):
        load_delta(tmp_path / "it.safetensors", other)
    assert torch.equal(logits(other), before)


def test_base_is_verified_after_full_fine_tuning_too(
    tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    path, model = tmp_path / "it.safetensors", make_model("test_resnet", "full_ft")
    make_trainer().fit(model, make_loader())
    save_delta(model, path)
    assert torch.equal(logits(load_delta(path, make_model("test_resnet", "full_ft"))), logits(model))
    wanted, other = logits(model), make_model("test_resnet", "full_ft", seed=1)
    before = logits(other)
    with pytest.raises(ValueError, match=r"trained from weights with SHA-256 [0-9a-f]{64}.*have [0-9a-f]{64}"):
        load_delta(path, other)
    assert torch.equal(logits(other), before)
    make_trainer().fit(model, make_loader(seed=3))  # further on, and back again
    assert torch.equal(logits(load_delta(path, model)), wanted)


@every_method
def test_a_fit_names_its_base_though_it_is_resumed(
    method: str, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    base = weights_hash(make_model("test_resnet", method).backbone.model)
    first, trainer = make_model("test_resnet", method), make_trainer()
    trainer.fit(first, make_loader())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    resumed = make_model("test_resnet", method)
    make_trainer(max_epochs=2).fit(resumed, make_loader(), ckpt_path=tmp_path / "it.ckpt")
    save_delta(resumed, tmp_path / "it.safetensors")
    assert read_delta(tmp_path / "it.safetensors").base_sha256 == base


def test_deltas_take_turns_on_one_backbone(tmp_path: Path) -> None:
    model = make_model("test_resnet", "scl_ft")
    wanted = {}
    for name in ("one", "two"):
        disturb(model)
        save_delta(model, tmp_path / f"{name}.safetensors")
        wanted[name] = logits(model)
    assert not torch.equal(wanted["one"], wanted["two"])
    assert torch.equal(logits(load_delta(tmp_path / "one.safetensors", model)), wanted["one"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_model("test_vit", "layer_ft"), "another backbone: test_resnet.*test_vit"),
        (lambda: make_model("test_resnet", "scl_ft"), "another method.*LayerFinetuning.*SkipConnection"),
        (lambda: make_model("test_resnet", "layer_ft", num_classes=4), "another number of classes: 3.*4"),
        (lambda: make_model("test_resnet", "layer_ft", head=partial(nn.Linear, bias=False)), "another head"),
    ],
)
def test_delta_of_another_model_is_refused(build: Callable[[], ImageClassifier], message: str, tmp_path: Path) -> None:
    save_delta(make_model("test_resnet", "layer_ft"), tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match=message):
        load_delta(tmp_path / "it.safetensors", build())


def test_another_shape_is_refused(tmp_path: Path) -> None:
    model = make_model("test_resnet", "layer_ft", head=lambda width, classes: nn.Linear(width, classes))
    save_delta(model, tmp_path / "it.safetensors")
    model.head = nn.Linear(96, 5)
    with pytest.raises(ValueError, match=r"head\.\w+ is \(3,.*\(5,"):
        load_delta(tmp_path / "it.safetensors", model)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    save_delta(make_model("test_resnet", "layer_ft"), tmp_path / "it.safetensors")
    path = tmp_path / "it.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"damaged or no \.safetensors"):
        load_delta(path, make_model("test_resnet", "layer_ft"))


def test_other_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match="no delta of nc-finetune"):
        read_delta(tmp_path / "it.safetensors")
    with pytest.raises(FileNotFoundError, match="no delta at"):
        read_delta(tmp_path / "nowhere.safetensors")


def test_description_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    save_delta(make_model("test_resnet", "linear_probe"), path)
    rewrite(path, lambda content: content["config"].update(format_version=99))
    with pytest.raises(ValueError, match="version 99, this nc-finetune reads 1"):
        read_delta(path)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description inside a delta."""
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(content)
    save_file(tensors, path, {METADATA_KEY: json.dumps(content)})


def test_foreign_classes_are_built_only_when_trusted(tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    save_delta(make_model("test_resnet", "linear_probe"), path)
    head = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    rewrite(path, lambda content: content["config"].update(head=head))
    with pytest.raises(ValueError, match=r"subprocess.Popen is outside nc_finetune\.backbones"):
        load_delta(path)
    head["class_path"] = "nc_finetune.heads.base.ABC"
    rewrite(path, lambda content: content["config"].update(head=head))
    with pytest.raises(ValueError, match=r"'nc_finetune\.heads\.base\.ABC' is no class of"):
        load_delta(path)


def test_trusted_head_is_built_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import collections

    # A module that can be imported by name wherever the tests run.
    monkeypatch.setattr(collections, "GainedLinear", GainedLinear, raising=False)
    monkeypatch.setattr(GainedLinear, "__module__", "collections")
    model = make_model("tf_efficientnet_lite0", "full_ft", head=partial(GainedLinear, gain=3.0))
    save_delta(model, tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match="trust=True"):
        load_delta(tmp_path / "it.safetensors")
    loaded = load_delta(tmp_path / "it.safetensors", trust=True)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.head.gain == 3


def test_what_cannot_be_described_needs_the_model(tmp_path: Path) -> None:
    model = make_model("test_resnet", "linear_probe", head=lambda width, classes: GainedLinear(width, classes, 4.0))
    save_delta(model, tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match="does not say how its head is built; pass the model"):
        load_delta(tmp_path / "it.safetensors")
    fresh = make_model("test_resnet", "linear_probe", head=GainedLinear)
    assert torch.equal(logits(load_delta(tmp_path / "it.safetensors", fresh)), logits(model))


def test_tied_and_overlapping_weights_are_kept_once(tmp_path: Path) -> None:
    model = make_model("test_resnet", "linear_probe", head=TiedHead)
    with torch.no_grad():
        model.head.again.add_(1)
    save_delta(model, tmp_path / "it.safetensors")
    with safe_open(tmp_path / "it.safetensors", "pt") as file:
        assert set(file.keys()) == {"head.first", "head.second"}
    fresh = make_model("test_resnet", "linear_probe", head=TiedHead)
    loaded = load_delta(tmp_path / "it.safetensors", fresh)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.head.again is loaded.head.first


def test_saving_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    model = make_model("test_resnet", "linear_probe")
    with pytest.raises(ValueError, match="3 classes, got 2 class names"):
        save_delta(model, tmp_path / "it.safetensors", class_names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"a delta is a \.safetensors file, got 'it.ckpt'"):
        save_delta(model, tmp_path / "it.ckpt")
    assert not list(tmp_path.iterdir())


@every_method
def test_ordinary_checkpoint_is_built_without_the_pretrained_weights(
    method: str, tmp_path: Path, make_loader: LoaderFactory, make_trainer: TrainerFactory
) -> None:
    base = tmp_path / "base.safetensors"
    state = TimmBackbone("test_resnet", None).model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, base)
    trained = ImageClassifier(TimmBackbone("test_resnet", str(base)), 3, method=METHODS[method]("layer2.0"))
    trainer = make_trainer(max_epochs=1)
    trainer.fit(trained, make_loader())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    base.unlink()
    loaded, _ = load_model(tmp_path / "it.ckpt")
    assert torch.equal(logits(loaded), logits(trained))


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "it.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of an ImageClassifier"):
        load_model(tmp_path / "it.ckpt")
    (tmp_path / "it.ckpt").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged"):
        load_model(tmp_path / "it.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_model(tmp_path / "nowhere.ckpt")


def test_a_delta_may_be_told_of_its_data_without_a_trainer(tmp_path: Path) -> None:
    model, path = ImageClassifier("test_resnet", 10, weights=None), tmp_path / "delta.safetensors"
    save_delta(model, path, data=ImageData("sklearn:digits", image_size=48))
    config = read_delta(path).config
    assert (config.image_size, config.interpolation, config.class_names) == (48, "bicubic", [*"0123456789"])
