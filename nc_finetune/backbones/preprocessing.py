"""How weights want their images, and what to do when that is unknown or contradicted."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """How the weights want their images.

    Attributes:
        mean: Mean of each channel, subtracted from images in ``[0, 1]``.
        std: Standard deviation of each channel, divided by after that.
        image_size: Height and width of the images that the weights were trained on.
        interpolation: Resampling filter of their transform, e.g. ``"bicubic"``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    interpolation: str

    @classmethod
    def of_config(cls, config: Mapping[str, Any], image_size: int | Sequence[int]) -> Preprocessing:
        """Build it from what timm and open_clip say of weights; of a size ``(..., H, W)`` the width counts."""
        size = image_size if isinstance(image_size, int) else image_size[-1]
        return cls(tuple(config["mean"]), tuple(config["std"]), size, config["interpolation"])

    def for_channels(self, number: int) -> Preprocessing:
        """Return the same for images of another number of channels: of one the means over channels, of more in turn.

        Example:
            >>> Preprocessing((0.2, 0.4, 0.6), (0.5, 0.5, 0.5), 224, "bicubic").for_channels(1).mean
            (0.4,)
        """
        if number == len(self.mean):
            return self

        def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
            if number == 1:
                return (round(sum(values) / len(values), 6),)
            return tuple(values[channel % len(values)] for channel in range(number))

        return replace(self, mean=adapt(self.mean), std=adapt(self.std))


def settle_preprocessing(
    source: str, given: Preprocessing | None, stated: Preprocessing | None, usual: Iterable[Preprocessing]
) -> Preprocessing:
    """Decide between what the user says, what the weights say, and what is usual for the architecture.

    Args:
        source: What the weights are, for the messages.
        given: What the user says, if anything.
        stated: What a tag or a configuration says of these very weights; ``None`` for a file that says nothing.
        usual: What other weights of this architecture want, the most likely first.

    Returns:
        What the weights say; without that what the user says; without both the first of the usual ones.

    Raises:
        ValueError: If the user and the weights contradict each other in mean, standard deviation or interpolation.
    """
    if given is not None and stated is not None and replace(given, image_size=stated.image_size) != stated:
        raise ValueError(
            f"{source} were trained with {_describe(stated)}, not {_describe(given)}; leave preprocessing out"
        )
    settled = given or stated
    if settled is not None:
        return settled
    choices = list(usual)
    if len({(choice.mean, choice.std) for choice in choices}) > 1:
        warnings.warn(
            f"{source} do not say how their images were normalised, and weights of this architecture differ in that:"
            f" {_describe(choices[0])} is assumed; pass preprocessing=, or a hub folder with its configuration",
            stacklevel=4,
        )
    return choices[0]


def _describe(preprocessing: Preprocessing) -> str:
    def rounded(values: tuple[float, ...]) -> str:
        return "/".join(f"{value:.3g}" for value in values)

    return (
        f"mean {rounded(preprocessing.mean)}, std {rounded(preprocessing.std)} and"
        f" {preprocessing.interpolation} interpolation"
    )
