"""Networks of transformers, tiny and without weights: blocks one by one, and features as the library gives them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import pytest
import torch
from conftest import quick_where
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_finetune import LayerwiseNC1
from nc_finetune.backbones import NetworkLayers, find_network_layers, hidden_state

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
SWIN = {"patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
PVT = {**PYRAMID, "num_attention_heads": [1, 1, 2, 2]}
CONVOLUTIONS = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]}
LEVIT = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 2, 1], "key_dim": [8, 8, 8]}


@dataclass
class Family:
    """A network by its name in transformers, what its blocks are called, and where the class token is.

    The class token is in the block of number ``tokens_from`` and later; ``None`` where there is none. ``norm`` is what
    the library applies to the last block of the first stage before it gives the hidden state.
    """

    name: str
    blocks: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    tokens_from: int | None = None
    norm: str | None = None
    head: str = "ForImageClassification"

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        options = {"image_size": self.size, "num_labels": 3, **self.options}
        config = getattr(transformers, f"{self.name}Config")(**options)
        net: nn.Module = getattr(transformers, f"{self.name}{self.head}")(config)
        return net.eval()


def staged(pattern: str, depths: list[int]) -> list[str]:
    return [pattern.format(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]


def plain(pattern: str) -> list[str]:
    return [pattern.format(block) for block in range(2)]


FOUR = [1, 2, 1, 1]
HIERA = {
    "image_size": [64, 64],
    "embed_dim": 16,
    "depths": [1, 2, 1],
    "num_heads": [1, 2, 4],
    "query_stride": [2, 2],
    "num_query_pool": 2,
}
CVT = {"embed_dim": [16, 16, 16], "num_heads": [1, 1, 1], "depth": [1, 2, 3]}
FAMILIES = [
    Family("Swin", staged("swin.encoder.layers.{}.blocks.{}", [1, 2]), SWIN),
    Family("Swinv2", staged("swinv2.encoder.layers.{}.blocks.{}", [1, 2]), SWIN),
    Family("DonutSwin", staged("donut.encoder.layers.{}.blocks.{}", [1, 2]), SWIN),
    Family(
        "Hiera",
        staged("hiera.encoder.stages.{}.layers.{}", [1, 2, 1]),
        HIERA,
        64,
    ),
    Family(
        "FocalNet",
        staged("focalnet.encoder.stages.{}.layers.{}", [1, 2]),
        {"patch_size": 2, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 2]},
    ),
    Family(
        "PvtV2",
        staged("pvt_v2.encoder.layers.{}.blocks.{}", FOUR),
        PVT,
        64,
        norm="pvt_v2.encoder.layers.0.layer_norm",
    ),
    Family("Pvt", staged("pvt.encoder.block.{}.{}", FOUR), PVT, 64, tokens_from=4),
    Family(
        "Segformer",
        staged("segformer.stages.{}.blocks.{}", FOUR),
        PVT,
        64,
        norm="segformer.stages.0.layer_norm",
    ),
    Family("Cvt", staged("cvt.encoder.stages.{}.layers.{}", [1, 2, 3]), CVT, 64, tokens_from=3),
    Family("ConvNext", staged("convnext.encoder.stages.{}.layers.{}", FOUR), PYRAMID, 64),
    Family("ConvNextV2", staged("convnextv2.encoder.stages.{}.layers.{}", FOUR), PYRAMID, 64),
    Family("ResNet", staged("resnet.encoder.stages.{}.layers.{}", [1, 2]), {**CONVOLUTIONS, "layer_type": "basic"}),
    Family("ResNet", staged("resnet.encoder.stages.{}.layers.{}", [1, 2]), CONVOLUTIONS),
    Family("RegNet", staged("regnet.encoder.stages.{}.layers.{}", [1, 2]), {**CONVOLUTIONS, "groups_width": 8}),
    Family("Bit", staged("bit.encoder.stages.{}.layers.{}", [1, 2]), {**CONVOLUTIONS, "num_groups": 4}),
    Family("PoolFormer", staged("poolformer.encoder.block.{}.{}", FOUR), {**PYRAMID, "num_encoder_blocks": 4}, 64),
    Family("Levit", staged("levit.encoder.stages.{}.layers.{}", [4, 6, 2]), LEVIT, 64),
    Family("ViT", plain("vit.layers.{}"), VIT, tokens_from=0),
    Family("ViTMSN", plain("vit.layers.{}"), VIT, tokens_from=0),
    Family("DeiT", plain("deit.layers.{}"), VIT, tokens_from=0),
    Family("DeiT", plain("deit.layers.{}"), VIT, tokens_from=0, head="ForImageClassificationWithTeacher"),
    Family("Beit", plain("beit.layers.{}"), VIT, tokens_from=0),
    Family("Data2VecVision", plain("data2vec_vision.encoder.layer.{}"), VIT, tokens_from=0),
    Family("Dinov2", plain("dinov2.encoder.layer.{}"), VIT, tokens_from=0),
    Family("Dinov2WithRegisters", plain("dinov2_with_registers.encoder.layer.{}"), VIT, tokens_from=0),
    Family("IJepa", plain("ijepa.layers.{}"), VIT),
    Family("CLIPVision", plain("encoder.layers.{}"), VIT, tokens_from=0, head="Model"),
    Family("SiglipVision", plain("encoder.layers.{}"), VIT, head="Model"),
]
# One of each layout of blocks and tokens, which run always.
FEW = {"Swin", "PvtV2", "Pvt", "ConvNext", "Levit", "ViT", "CLIPVision"}
every_family = pytest.mark.parametrize(
    "family",
    quick_where(lambda family: family.name in FEW, FAMILIES),
    ids=lambda family: f"{family.name}{family.head[3:]}",
)


class Module(L.LightningModule):
    def __init__(self, net: nn.Module, features: int | None = None) -> None:
        super().__init__()
        self.net = net
        self.head = nn.Identity() if features is None else nn.Linear(features, 3)

    def forward(self, images: Tensor) -> Tensor:
        output = self.net(images)
        logits: Tensor = self.head(output.pooler_output if hasattr(output, "pooler_output") else output.logits)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def watch(layers: NetworkLayers, forward: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    taken: dict[str, Any] = {}
    with torch.no_grad():
        for name in layers.layer_names:
            with layers.watch(name, taken.setdefault):
                result = forward()
    return result, taken


@every_family
def test_blocks_are_found_one_by_one_in_the_order_in_which_they_run(family: Family) -> None:
    net = family.build()
    layers = find_network_layers(Module(net))
    assert list(layers.block_names) == family.blocks
    ran: list[str] = []
    hooks = [net.get_submodule(name).register_forward_hook(lambda *_, n=name: ran.append(n)) for name in family.blocks]
    net(torch.randn(2, 3, family.size, family.size))
    assert len(hooks) == len(ran)
    assert ran == family.blocks


def pooled_by_hand(state: Tensor, has_class_token: bool) -> Tensor:
    if state.ndim == 4:
        return state.mean(dim=(2, 3))
    return state[:, 0] if has_class_token else state.mean(dim=1)


@every_family
def test_features_are_those_of_the_hidden_states(family: Family) -> None:
    net = family.build()
    layers = find_network_layers(Module(net))
    images = torch.randn(2, 3, family.size, family.size)
    outputs, taken = watch(layers, lambda: net(images, output_hidden_states=True))
    assert set(taken) == set(layers.layer_names)
    by_hand: list[Tensor] = []
    for number, name in enumerate(family.blocks):
        by_hand.append(
            pooled_by_hand(hidden_state(taken[name]), family.tokens_from is not None and number >= family.tokens_from)
        )
        assert torch.equal(layers.pool(taken[name], layer=name), by_hand[-1])
    given = [state for state in outputs.hidden_states if state.ndim > 2] if "hidden_states" in outputs else []
    pooled = [pooled_by_hand(state, family.tokens_from == 0) for state in given]
    if family.norm is not None:
        by_hand = [net.get_submodule(family.norm)(hidden_state(taken[family.blocks[0]])).mean(dim=1)]
    assert pooled
    assert any(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a in by_hand for b in pooled)


@every_family
def test_they_are_measured_in_a_training(family: Family) -> None:
    net = family.build()
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0  # statistics of two batches alone shrink what tells images apart to rounding
    data = TensorDataset(torch.randn(9, 3, family.size, family.size), torch.arange(9) % 3)
    callback = LayerwiseNC1(strict=True, num_classes=3)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(net.train(), 16 if family.head == "Model" else None), DataLoader(data, 5))
    assert {f"nc1/{name}" for name in family.blocks} < set(callback.history[-1])
    assert all(0 < value < float("inf") for key, value in callback.history[-1].items() if key.startswith("nc1/"))


class Tokens(nn.Module):
    """Cuts images into patches, without or with a class token in front."""

    def __init__(self, with_token: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        if with_token:
            self.cls_token = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        first = [self.cls_token.expand(len(tokens), -1, -1)] if hasattr(self, "cls_token") else []
        return torch.cat([*first, tokens], dim=1)


class Outer(nn.Module):
    """Its encoder holds the blocks; the class token is its own, or that of its embeddings, or there is none."""

    def __init__(self, holder: str) -> None:
        super().__init__()
        self.embeddings = Tokens(holder == "embeddings")
        if holder == "own":
            self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embeddings(images)
        if hasattr(self, "cls_token"):
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        logits: Tensor = self.head(self.encoder(tokens)[:, 0])
        return logits


@pytest.mark.parametrize("holder", ["own", "embeddings", "nobody"])
def test_a_class_token_may_be_held_outside_the_module_of_the_blocks(holder: str) -> None:
    net = Outer(holder).eval()
    layers = find_network_layers(net)
    assert layers.network is net.encoder
    _, taken = watch(layers, lambda: net(torch.randn(2, 3, 32, 32)))
    last = layers.block_names[-1]
    by_hand = taken[last].mean(dim=1) if holder == "nobody" else taken[last][:, 0]
    assert torch.equal(layers.pool(taken[last], layer=last), by_hand)


def test_a_class_token_of_another_network_is_not_ours() -> None:
    net = nn.ModuleDict({"student": Outer("nobody"), "teacher": Outer("own")})
    assert not find_network_layers(net, network="student").layout.has_class_token


@pytest.mark.parametrize("width", [16, 4])
def test_maps_with_channels_last_are_told_by_the_norms(width: int) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)

        def forward(self, maps: Tensor) -> Tensor:
            return maps + self.down(self.up(self.norm(maps)).relu())

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.blocks = nn.Conv2d(3, width, 8, 8), nn.ModuleList([Block(), Block()])

        def forward(self, images: Tensor) -> Tensor:
            maps = self.patches(images).permute(0, 2, 3, 1)
            for block in self.blocks:
                maps = block(maps)
            return maps

    layers = find_network_layers(net := Mixer())
    _, taken = watch(layers, lambda: net(torch.randn(2, 3, 32, 32)))
    if width == 4:  # as large as the map
        with pytest.raises(ValueError, match="channels may be the first or the last"):
            layers.pool(taken["blocks.1"], layer="blocks.1")
    else:
        assert torch.equal(layers.pool(taken["blocks.1"], layer="blocks.1"), taken["blocks.1"].mean(dim=(1, 2)))


@pytest.mark.parametrize("output", [(torch.zeros(2, 5, 8), torch.zeros(2, 3, 8)), (3, torch.zeros(2, 8)), [], None])
def test_what_has_no_single_hidden_state_is_refused_with_what_to_pass(output: Any) -> None:
    with pytest.raises(TypeError, match=r"must give one tensor, got .*layers="):
        hidden_state(output)


def test_only_the_visual_tower_of_clip_is_looked_at() -> None:
    text = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.CLIPConfig(text_config={**VIT, **text}, vision_config={**VIT, "image_size": 32})
    blocks = find_network_layers(Module(transformers.CLIPModel(config))).block_names
    assert blocks == ("vision_model.encoder.layers.0", "vision_model.encoder.layers.1")


@pytest.mark.parametrize("name", ["DeiT", "SwiftFormer"])
def test_a_distilled_classifier_is_not_the_classifier(name: str) -> None:
    with torch.device("meta"):
        net = Family(
            name, [], head="ForImageClassificationWithTeacher" if name == "DeiT" else "ForImageClassification"
        ).build()
    expected = net.cls_classifier if name == "DeiT" else net.head
    assert find_network_layers(Module(net)).classifier is expected
