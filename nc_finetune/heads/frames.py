"""Fixed heads: a frame that is known beforehand is no parameter."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from nc_finetune.errors import check_name
from nc_finetune.functional.frames import (
    nearest_orthogonal_frame,
    nearest_simplex_etf,
    orthogonal_frame,
    simplex_etf,
)
from nc_finetune.heads.base import ClassifierHead, check_positive, logit_scale_for, unit_length

Orientation = Literal["random", "canonical", "class_means"]


class FrameHead(ClassifierHead):
    """Base of the fixed heads: ``logits = W h``, W a frame of K rows of length alpha, a buffer without parameters.

    With ``normalize`` features have length 1 as well, and logits are ``alpha * cos(h, w_k)``: W then needs no training
    signal for its scale, and alpha is 1 over the temperature. Cross-entropy needs an alpha well above 1 then, the dot
    regression works with any; see :class:`~nc_finetune.losses.DotRegressionLoss`. Features that cannot be negative
    (after a ReLU) reach a cosine of about 0.7 with a random row: decisions do not suffer, but probabilities stay less
    sure unless alpha is larger, or a bottleneck comes first.

    A rotation that suits the features of a pre-trained backbone spares it from turning them: ``"class_means"``.

    Args:
        in_features: D.
        out_features: K.
        orientation: ``"random"``, uniform over all rotations; ``"canonical"``, along the leading coordinates; or
            ``"class_means"``, random until :meth:`align_` turns it to the class means, which
            :class:`~nc_finetune.ImageClassifier` sees to before training.
        seed: Of the random orientation; the global random state is neither read nor changed.
        normalize: Scale features to length 1.
        alpha: Length of the rows. ``None`` is, for normalised features, that at which a collapse gives the true class
            a probability of 0.999 (:func:`~nc_finetune.heads.logit_scale_for`), otherwise 1: free features find their
            own length.

    Raises:
        ValueError: If the widths do not fit, the orientation is unknown, or alpha is not positive.

    Attributes:
        weight: W, shape ``(K, D)``; saved in checkpoints, which therefore need neither seed nor class means.
    """

    weight: Tensor
    bias: None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        orientation: Orientation = "random",
        seed: int = 0,
        normalize: bool = True,
        alpha: float | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        check_name("orientation", orientation, get_args(Orientation))
        check_positive("alpha", alpha)
        self.orientation = orientation
        self.seed = seed
        self.normalize = normalize
        self.alpha = alpha or (logit_scale_for(out_features, self._margin()) if normalize else 1.0)
        frame = self._frame(None if orientation == "canonical" else seed)
        self.register_buffer("weight", (self.alpha * frame).to(torch.get_default_dtype()))
        self.register_parameter("bias", None)
        if orientation == "class_means":  # in the state: what was aligned once is not aligned again
            self.register_buffer("aligned", torch.tensor(False))

    @property
    def awaits_class_means(self) -> bool:
        """Whether the frame is to be turned to class means, and has not been yet."""
        return self.orientation == "class_means" and not self.get_buffer("aligned")

    @abstractmethod
    def _frame(self, seed: int | None) -> Tensor:
        """Return rows of length 1, shape (K, D)."""

    @abstractmethod
    def _nearest(self, means: Tensor) -> Tensor:
        """Return rows of length 1, shape (K, D), oriented towards class means."""

    @abstractmethod
    def _margin(self) -> float:
        """Return by how much the true class' cosine is above the others' at the collapse."""

    @torch.no_grad()
    def align_(self, class_means: Tensor) -> None:
        """Turn the frame, in place, to the orientation nearest to class means (orthogonal Procrustes problem).

        Meant for the means of a first pass over the training split: of what the head sees, in eval mode, and scaled to
        length 1 before they are averaged if the head normalises.

        Args:
            class_means: Shape ``(K, D)``.

        Raises:
            ValueError: If the shape is another, or the means are not finite or give no orientation.
        """
        if class_means.shape != self.weight.shape:
            raise ValueError(
                "class means must have the shape of the head's weight, (K, D) ="
                f" {tuple(self.weight.shape)}, got {tuple(class_means.shape)}"
            )
        self.weight.copy_(self.alpha * self._nearest(class_means))
        if self.orientation == "class_means":
            self.get_buffer("aligned").fill_(True)

    def scaled(self, features: Tensor) -> Tensor:
        """Return features as they meet the frame: of length 1 where the head normalises."""
        return unit_length(features) if self.normalize else features

    def logits(self, features: Tensor) -> Tensor:
        """Return inner products with the frame."""
        return F.linear(self.scaled(features), self.weight)

    def extra_repr(self) -> str:
        """Show the widths, the orientation and the scale."""
        seed = "" if self.orientation == "canonical" else f", seed={self.seed}"
        options = f"orientation={self.orientation}{seed}, normalize={self.normalize}, alpha={self.alpha:.4g}"
        return f"{super().extra_repr()}, {options}"


class SimplexETFHead(FrameHead):
    """Fixed simplex-ETF classifier: ``W = alpha sqrt(K/(K - 1)) (I - 11^T/K) P^T``, P a ``(D, K)`` partial isometry.

    The geometry to which trained classifiers collapse, given from the start; it has no parameters. A simplex ETF of K
    classes needs ``D >= K - 1``.

    Args:
        in_features: D.
        out_features: K, at least 2.
        orientation: See :class:`FrameHead`.
        seed: Of the random orientation.
        normalize: Scale features to length 1.
        alpha: Length of the rows; see :class:`FrameHead`.
        allow_projection: With ``D < K - 1``, take the best projection of the simplex on D dimensions, randomly
            oriented, with rows as equally long as they can be; see
            :func:`~nc_finetune.functional.frames.simplex_etf`.

    Raises:
        ValueError: If ``D < K - 1`` without ``allow_projection``, or as :class:`FrameHead`.

    Source:
        Zhu et al. 2021, A geometric analysis of neural collapse with unconstrained features, arXiv:2105.02375;
        Yang et al. 2022, Inducing neural collapse in imbalanced learning: do we really need a learnable classifier at
        the end of deep neural network?, arXiv:2203.09081.

    Example:
        >>> head = SimplexETFHead(4, 3, alpha=2.0)
        >>> torch.round(head(5 * head.weight), decimals=4).tolist()
        [[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]]
        >>> sum(parameter.numel() for parameter in head.parameters())
        0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        orientation: Orientation = "random",
        seed: int = 0,
        normalize: bool = True,
        alpha: float | None = None,
        allow_projection: bool = False,
    ) -> None:
        self.allow_projection = allow_projection  # before the base builds the frame
        super().__init__(
            in_features, out_features, orientation=orientation, seed=seed, normalize=normalize, alpha=alpha
        )

    def _frame(self, seed: int | None) -> Tensor:
        shape = self.out_features, self.in_features
        return simplex_etf(*shape, seed=seed, allow_projection=self.allow_projection)

    def _nearest(self, means: Tensor) -> Tensor:
        return nearest_simplex_etf(means, allow_projection=self.allow_projection)

    def _margin(self) -> float:
        return self.out_features / (self.out_features - 1)


class OrthogonalFrameHead(FrameHead):
    """Fixed orthogonal classifier: K orthogonal rows of length alpha; what the bias-free MSE collapses to.

    It has no parameters and needs ``D >= K``. :meth:`align_` takes the means as they are, uncentred.

    Args:
        in_features: D.
        out_features: K, at least 2.
        orientation: See :class:`FrameHead`.
        seed: Of the random orientation.
        normalize: Scale features to length 1.
        alpha: Length of the rows; see :class:`FrameHead`.

    Raises:
        ValueError: If ``D < K``, or as :class:`FrameHead`.

    Source:
        Tirer & Bruna 2022, Extended unconstrained features model for exploring deep neural collapse,
        arXiv:2202.08087.

    Example:
        >>> OrthogonalFrameHead(3, 2, orientation="canonical", alpha=2.0)(torch.tensor([[4.0, 0.0, 3.0]])).tolist()
        [[1.6..., 0.0]]
    """

    def _frame(self, seed: int | None) -> Tensor:
        return orthogonal_frame(self.out_features, self.in_features, seed=seed)

    def _nearest(self, means: Tensor) -> Tensor:
        return nearest_orthogonal_frame(means)

    def _margin(self) -> float:
        return 1.0
