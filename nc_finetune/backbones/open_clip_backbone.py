"""Any visual tower of open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nc_finetune.backbones._open_clip.source import OpenClipSource
from nc_finetune.backbones._open_clip.text_encoder import TextEncoder
from nc_finetune.backbones._open_clip.towers import describe_tower
from nc_finetune.backbones._weights.state_dicts import shapes
from nc_finetune.backbones.base import Backbone
from nc_finetune.backbones.preprocessing import Preprocessing
from nc_finetune.errors import UnavailableError, check_name

ClipFeatures = Literal["pre_projection", "projected"]


class OpenClipBackbone(Backbone):
    """The visual tower of a CLIP model of open_clip (Radford et al. 2021, arXiv:2103.00020; Ilharco et al. 2021).

    The text tower is no part of it; :meth:`text_encoder` builds one for as long as it is needed.

    Args:
        name: A model of ``open_clip.list_models()``; QuickGELU has names of its own (``"ViT-B-32-quickgelu"``).
        weights: A tag of that model, a path of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file with the whole
            model or the visual tower, a path of a hub folder (``open_clip_config.json`` and weights; ``local-dir:``
            in front of a path without a slash), or ``None`` for random initialisation.
        model_options: Further arguments of ``open_clip.create_model``, e.g. ``{"force_image_size": 64}``.
        features: What is the penultimate feature. ``"pre_projection"`` is what the projection sees (of a
            transformer the class token after the final norm, 768 wide in a ViT-B); the projection then stands aside in
            ``projection``: frozen, out of the forward pass, counted among the parameters. ``"projected"`` is the
            embedding, as a zero-shot classifier needs it.
        preprocessing: How the weights want their images, for a file that does not say so; left out, it is that of
            the tag or of the hub folder, and for a mere file what the tags of the model want.

    Attributes:
        features: As above.
        projection: The projection that stands aside; ``None`` if the features are projected.

    Raises:
        ValueError: If the model or its weights are unknown, the file or folder holds those of another architecture,
            they were trained with another activation, or ``preprocessing`` contradicts what they say.
        FileNotFoundError: If the file or folder is not there.
        RuntimeError: If the weights cannot be had from the hub.

    Warns:
        UserWarning: If a file does not say how its images were normalised and the tags of the model differ in that.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     backbone = OpenClipBackbone("ViT-B-32", weights=None)
        >>> backbone.num_features, backbone.block_names[-1], sum(p.numel() for p in backbone.parameters())
        (768, 'transformer.resblocks.11', 87849216)
    """

    def __init__(
        self,
        name: str,
        weights: str | None,
        model_options: dict[str, Any] | None = None,
        features: ClipFeatures = "pre_projection",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        check_name("kind of features", features, get_args(ClipFeatures))
        source = OpenClipSource(name, weights, model_options or {})
        clip = source.build()
        visual: Any = clip.visual
        tower = describe_tower(visual)
        projection = tower.split() if features == "pre_projection" else None
        super().__init__(
            visual,
            name=name,
            weights=weights,
            num_features=tower.num_features if features == "pre_projection" else source.config["embed_dim"],
            block_names=tower.layout.block_names,
            preprocessing=source.settle_preprocessing(clip, preprocessing),
            num_prefix_tokens=tower.layout.num_prefix_tokens,
            maps_channels_last=bool(tower.layout.maps_channels_last),
            has_class_token=tower.layout.has_class_token,
        )
        self.model_options = model_options or {}
        self.features = features
        self.projection = None if projection is None else projection.requires_grad_(False)
        self._source = source
        self._projection_key = tower.projection_key
        self._image_size = tower.image_size

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return the features before or after the projection, whichever was asked for.

        Raises:
            ValueError: If the tower is bound to images of another size.
        """
        if self._image_size not in (None, tuple(inputs.shape[2:])):
            raise ValueError(
                f"{self.name} takes images of {self._image_size} pixels, got {tuple(inputs.shape[2:])};"
                " resize them, or build it with model_options={'force_image_size': ...}"
            )
        features: Tensor = self.model(inputs)
        return features

    def project(self, features: Tensor) -> Tensor:
        """Take penultimate features to the space that images and texts share.

        Args:
            features: Shape ``(N, num_features)``.

        Returns:
            Embeddings ``(N, embed_dim)``, not normalised; the features themselves if they are projected already.
        """
        return features if self.projection is None else self.projection(features)

    def tower_state_dict(self) -> dict[str, Tensor]:
        """Return the weights of ``open_clip.create_model(name).visual``, the projection included.

        Raises:
            ValueError: If that tower has other names or shapes, since the network was changed.
        """
        state: dict[str, Tensor] = dict(self.model.state_dict())
        if self.projection is not None:
            key = self._projection_key
            own = key.rpartition(".")[2]
            aside = self.projection.state_dict()
            state |= {key if name == own else f"{key}.{name}": value for name, value in aside.items()}
        with torch.device("meta"):
            plain: Any = OpenClipSource(self.name, None, self.model_options).build()
        if shapes(state) != (wanted := shapes(plain.visual.state_dict())):
            different = sorted(state.keys() ^ wanted.keys()) or sorted(state)
            raise ValueError(
                f"open_clip's {self.name} has other weights, e.g. {different[0]}; export a program or ONNX instead"
            )
        return state

    def text_encoder(self) -> TextEncoder:
        """Build the text tower that was trained beside this visual tower, and its tokenizer.

        Of a model with random weights it is the one that was drawn beside it.

        Raises:
            ValueError: If the weights are a file of the visual tower alone.
            RuntimeError: If the tokenizer is neither open_clip's own nor on this machine.
        """
        import open_clip

        if not self._source.has_text:
            raise ValueError(f"{self.weights} holds the visual tower of {self.name} alone; pass the whole model")
        try:
            tokenizer = open_clip.get_tokenizer(self.name)
        except Exception as error:  # the hub client has many kinds
            raise UnavailableError(f"the tokenizer of {self.name} could not be had ({error})") from error
        return TextEncoder(self._source.rebuild(), tokenizer, self.get_buffer("_mean").device)

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts; to do so more than once, keep a :meth:`text_encoder`.

        Args:
            prompts: Texts, e.g. ``"a photo of a dog."``.

        Returns:
            Shape ``(len(prompts), embed_dim)``, rows of length 1.

        Raises:
            TypeError: If one text comes in place of a list.
            ValueError: If there are no prompts, or the weights are a file of the visual tower alone.
            RuntimeError: If the tokenizer is neither open_clip's own nor on this machine.
        """
        return self.text_encoder()(prompts)
