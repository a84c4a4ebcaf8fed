"""Simple rules for a key layer, to be compared with short trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nc_finetune.backbones import Backbone
from nc_finetune.data import ImageData
from nc_finetune.methods import FullFinetuning, LinearProbe
from nc_finetune.selection.features import fit_probe, gradients_forgotten, method_features, subset_batches
from nc_finetune.selection.profile import measure_blocks


def argmin_nc1(nc1_layers: Mapping[str, float], blocks: Sequence[str]) -> str:
    """Choose the block whose pre-trained output has the smallest NC1 on the training split.

    Args:
        nc1_layers: NC1 by layer, before tuning.
        blocks: Those to choose from.

    Returns:
        The block.

    Example:
        >>> argmin_nc1({"stem": 0.1, "a": 3.0, "b": 2.0, "penultimate": 1.0}, ["a", "b"])
        'b'
    """
    return min(blocks, key=lambda block: _or_infinity(nc1_layers.get(block)))


def _or_infinity(value: float | None) -> float:
    return float("inf") if value is None or value != value else value


def relative_gradient_norms(
    backbone: Backbone, head: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], blocks: Sequence[str]
) -> dict[str, float]:
    """Compute ``|gradient| / |weights|`` of each block, the mean over batches of cross-entropy.

    Args:
        backbone: The network, left with no gradients and as frozen as it was.
        head: The classifier that the loss goes through.
        batches: Images and labels.
        blocks: Names of the blocks.

    Returns:
        The relative gradient norm by block.

    Source:
        Lee et al. 2022, Surgical fine-tuning improves adaptation to distribution shifts, arXiv:2210.11466 (Auto-RGN).
    """
    device = next(backbone.parameters()).device
    sums, number = dict.fromkeys(blocks, 0.0), 0
    with gradients_forgotten(backbone):
        FullFinetuning().freeze(backbone)
        backbone.eval()
        for images, labels in batches:
            backbone.zero_grad()
            nn.functional.cross_entropy(head(backbone(images.to(device))), labels.to(device)).backward()  # type: ignore[no-untyped-call]
            number += 1
            for block in blocks:
                sums[block] += _relative_norm(backbone.get_layer(block))
    return {block: total / max(number, 1) for block, total in sums.items()}


def _relative_norm(block: nn.Module) -> float:
    pairs = [(p.grad, p.detach()) for p in block.parameters() if p.grad is not None]
    gradient = torch.stack([grad.square().sum() for grad, _ in pairs]).sum().sqrt() if pairs else torch.zeros(())
    weights = torch.stack([value.square().sum() for _, value in pairs]).sum().sqrt() if pairs else torch.ones(())
    return float(gradient / weights)


def auto_rgn(backbone: Backbone, data: ImageData, blocks: Sequence[str], seed: int = 0) -> str:
    """Choose the block with the largest relative gradient norm, behind a fitted linear probe.

    Args:
        backbone: The pre-trained network.
        data: Its training split is looked at once.
        blocks: Those to choose from.
        seed: Which training images are looked at, where there are many.

    Returns:
        The block.

    Source:
        Lee et al. 2022, arXiv:2210.11466. There Auto-RGN scales the rate of each layer by this ratio; the block with
        the largest is the one that it would tune most.
    """
    number = 20 * data.batch_size
    batches = subset_batches(data, "train", number, seed)
    probe = fit_probe(*method_features(LinearProbe(), backbone, batches), data.num_classes)
    norms = relative_gradient_norms(backbone, probe, batches, blocks)
    return max(blocks, key=norms.__getitem__)


def simple_rules(backbone: Backbone, data: ImageData, seed: int = 0) -> dict[str, str]:
    """Tell what simple rules would choose of all blocks.

    Args:
        backbone: The pre-trained network.
        data: The training split is looked at.
        seed: Which images, where there are many.

    Returns:
        The block by rule: ``"argmin NC1"``, ``"Auto-RGN"`` and ``"middle block"``.
    """
    blocks = [name for name in backbone.block_names if any(True for _ in backbone.get_layer(name).parameters())]
    nc1_layers = {profile.block: profile.nc1 for profile in measure_blocks(backbone, data, validate=False)}
    return {
        "argmin NC1": argmin_nc1(nc1_layers, blocks),
        "Auto-RGN": auto_rgn(backbone, data, blocks, seed),
        "middle block": backbone.middle_block,
    }
