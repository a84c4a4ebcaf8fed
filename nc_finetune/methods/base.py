"""What every fine-tuning method decides: what is trained, in which mode, and which features the classifier sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nc_finetune.backbones import PENULTIMATE, Backbone, LayerPooling
from nc_finetune.errors import check_name
from nc_finetune.functional.readout import SolvedHead

BatchNormMode = Literal["eval", "train"]
Found = TypeVar("Found")
AUTO = "auto"  # a key layer that is still to be chosen


class FinetuningMethod(nn.Module, ABC):
    """Base of the fine-tuning methods.

    Frozen means frozen: what a method does not tune has ``requires_grad=False``, stays in eval mode (BatchNorm
    statistics, dropout, stochastic depth), and never reaches the optimizer. A method is a module for the sake of what
    it may learn itself, such as the scale of a skip; the backbone is not part of it.

    Methods of one's own say with :meth:`tuned_modules`, or :meth:`tuned_parameters`, what is trained, and with
    :meth:`features` what the classifier sees. What has to be looked up in a backbone for that is looked up once, by
    :meth:`bind`, and not at each step.

    Args:
        batch_norm: Mode of the BatchNorm layers inside the tuned part. ``"eval"`` keeps the pre-trained statistics:
            batch statistics of little data cost accuracy. ``"train"`` updates them.

    Raises:
        ValueError: If ``batch_norm`` is neither.

    Attributes:
        name: Name in recipes and results.
        label: Name in tables and pictures.
        default_learning_rate: Rate of the tuned part of the backbone with AdamW, of the key layer where there is one;
            ``None`` where nothing is tuned.
        rest_learning_rate: Default of what is tuned outside of a key layer.
        pooling: From the output of a skip's block to a vector.
        key_layer: Name of the tuned block, or names of the span of them, as given.
        key_layer_chosen: Whether it replaced ``"auto"``.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    default_learning_rate: ClassVar[float | None] = None
    rest_learning_rate: ClassVar[float] = 3e-4
    key_layer: str | list[str] | None = None
    key_layer_chosen: bool = False
    pooling: LayerPooling = "default"
    batch_norm: BatchNormMode
    _bound: BoundMethod | None = None

    def __init__(self, batch_norm: BatchNormMode = "eval") -> None:
        super().__init__()
        check_name("mode of BatchNorm", batch_norm, get_args(BatchNormMode))
        self.batch_norm = batch_norm

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an option; what was looked up under the old one is forgotten."""
        super().__setattr__(name, value)
        if name not in ("training", "_bound"):
            self.__dict__["_bound"] = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the backbone out of copies."""
        return {**self.__dict__, "_bound": None}

    def bind(self, backbone: Backbone) -> BoundMethod:
        """Return what the method has looked up in a backbone: once, until it is frozen anew or an option changes."""
        if self._bound is None or self._bound.backbone is not backbone:
            self._bound = BoundMethod(self, backbone)
        return self._bound

    @property
    def trains(self) -> bool:
        """Whether there is anything to train; a method that does not brings its own head."""
        return True

    @property
    def own_head(self) -> Callable[[int, int], nn.Module] | None:
        """Builds the classifier, where the method brings its own."""
        return None

    @property
    def solution(self) -> Callable[..., SolvedHead] | None:
        """What solves the head from features and labels in one pass, where it is not trained.

        A function as :func:`~nc_finetune.functional.readout.solve_head`, called with features, labels and number of
        classes. A method that has one brings its head, and nothing else of it is trained.
        """
        return None

    @abstractmethod
    def tuned_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return the parts of the backbone, or of the method itself, that are trained."""

    def tuned_parameters(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """Return the parameters that are trained beside the head: those of the tuned modules."""
        return (parameter for module in self.tuned_modules(backbone) for parameter in module.parameters())

    def key_layers(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the names of the key blocks; none, where the method does not tune by blocks."""
        return ()

    def key_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Return what is trained at the rate of the key layer: the key blocks."""
        return [backbone.get_layer(name) for name in self.key_layers(backbone)]

    def first_tuned_layer(self, backbone: Backbone) -> str | None:
        """Return the layer before which everything is frozen.

        Returns:
            The first block with a tuned parameter, ``"penultimate"`` where nothing is tuned, or ``None`` where
            something is tuned outside the blocks: nobody knows where that stands.
        """
        tuned = {id(parameter) for parameter in self.tuned_parameters(backbone)}
        if not tuned:
            return PENULTIMATE
        inside = {name: {id(p) for p in backbone.get_layer(name).parameters()} for name in backbone.block_names}
        if tuned - set().union(*inside.values()):
            return None
        return next(name for name, parameters in inside.items() if parameters & tuned)

    def skip_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks whose pooled outputs :meth:`features` looks at."""
        return ()

    def input_sources(self, backbone: Backbone) -> tuple[str, ...]:
        """Return the blocks whose inputs :meth:`features` looks at."""
        return ()

    def set_key_layer(self, layer: str | list[str]) -> None:
        """Tune another block from now on; call :meth:`freeze` afterwards."""
        self.key_layer_chosen |= self.key_layer == AUTO
        self.key_layer = layer

    def start_epoch(self, epoch: int) -> None:
        """Called before each training epoch, with its number, for methods that go through phases."""

    def features(self, backbone: Backbone, images: Tensor) -> Tensor:
        """Return what the classifier sees, shape ``(N, num_features)``."""
        features: Tensor = backbone(images)
        return features

    def num_features(self, backbone: Backbone) -> int:
        """Return how wide what the classifier sees is."""
        return backbone.num_features

    @property
    def changes_features(self) -> bool:
        """Whether the classifier sees something else than what the backbone gives."""
        return type(self).features is not FinetuningMethod.features

    def freeze(self, backbone: Backbone) -> None:
        """Leave gradients to what is tuned alone.

        Raises:
            ValueError: If the backbone has nothing of what the method tunes.
        """
        self._bound = None
        backbone.requires_grad_(False)
        for parameter in self.tuned_parameters(backbone):
            parameter.requires_grad_(True)

    def set_modes(self, backbone: Backbone) -> None:
        """Put the tuned modules into train mode and everything else into eval mode."""
        backbone.eval()
        bound = self.bind(backbone)
        for module in bound.tuned_modules:
            module.train()
        for norm in bound.batch_norms:
            # Not .train(): timm's BatchNorm has dropout inside, which is none of its statistics.
            norm.training = self.batch_norm == "train"


class BoundMethod:
    """What a method tunes and looks at in one backbone, each looked up when it is first asked for, and then known.

    A method has one at a time, from :meth:`~nc_finetune.methods.FinetuningMethod.bind`; it begins anew when the
    backbone is frozen again, or when another block is chosen.

    Args:
        method: The method.
        backbone: The network.

    Example:
        >>> from nc_finetune.backbones import TimmBackbone
        >>> from nc_finetune.methods import LayerFinetuning
        >>> method, backbone = LayerFinetuning(), TimmBackbone("test_vit", weights=None)
        >>> method.bind(backbone).key_layers, method.bind(backbone) is method.bind(backbone)
        (('blocks.2',), True)
    """

    def __init__(self, method: FinetuningMethod, backbone: Backbone) -> None:
        self.method = method
        self.backbone = backbone
        self._known: dict[str, Any] = {}

    @cached_property
    def tuned_modules(self) -> tuple[nn.Module, ...]:
        """The parts of the backbone, or of the method itself, that are trained as a whole."""
        return tuple(self.method.tuned_modules(self.backbone))

    @cached_property
    def batch_norms(self) -> tuple[_BatchNorm, ...]:
        """The BatchNorm layers in the tuned modules."""
        return tuple(part for whole in self.tuned_modules for part in whole.modules() if isinstance(part, _BatchNorm))

    @cached_property
    def key_layers(self) -> tuple[str, ...]:
        """Names of the key blocks."""
        return self.method.key_layers(self.backbone)

    @cached_property
    def skip_sources(self) -> tuple[str, ...]:
        """The blocks whose pooled outputs the method looks at."""
        return self.method.skip_sources(self.backbone)

    def known(self, name: str, look_up: Callable[[Backbone], Found]) -> Found:
        """Return what a method looks up in the backbone for itself, by a name of its own."""
        if name not in self._known:
            self._known[name] = look_up(self.backbone)
        found: Found = self._known[name]
        return found
