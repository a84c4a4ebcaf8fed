"""Any loss with class weights by the numbers of training images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nc_finetune.losses.class_weights import class_weights
from nc_finetune.losses.targets import loss_value, takes_several_labels


class ClassBalanced(nn.Module):
    """A loss whose class weights come from the data: one over the effective number of samples of each class.

    :class:`~nc_finetune.ImageClassifier` says the numbers of training images when a fit begins, where the datamodule
    knows them as ``class_counts``. Classes without training images weigh nothing.

    Args:
        loss: One that keeps ``weight`` as a buffer, as those of torch and of :mod:`nc_finetune.losses` do; ``None`` is
            cross-entropy.
        beta: In ``[0, 1]``, see :func:`~nc_finetune.losses.class_weights`; 1 is inverse frequency.

    Raises:
        ValueError: If the loss has no ``weight``, or beta lies outside.

    Example:
        >>> loss = ClassBalanced()
        >>> loss.use_class_counts([10, 30])
        >>> loss.loss.weight.tolist()
        [1.5, 0.5]
    """

    def __init__(self, loss: nn.Module | None = None, beta: float = 1.0) -> None:
        super().__init__()
        self.loss = loss or nn.CrossEntropyLoss()
        self.beta = beta
        if "weight" not in dict.fromkeys(self.loss._buffers):
            raise ValueError(f"{type(self.loss).__name__} has no class weights; choose a loss with a buffer 'weight'")
        class_weights([1], beta)
        if self.loss.weight is not None:
            raise ValueError("the loss has class weights already; leave weight out where the data give them")

    @property
    def multilabel(self) -> bool:
        """Whether labels are vectors of 0 and 1: what the loss inside says."""
        return takes_several_labels(self.loss)

    def use_class_counts(self, counts: Sequence[int]) -> None:
        """Set the weights.

        Args:
            counts: Training images of each of the K classes.
        """
        present = class_weights([count for count in counts if count], self.beta).tolist()
        weights = iter(present)
        self.loss.weight = class_weights([1]).new_tensor([next(weights) if count else 0.0 for count in counts])

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        return loss_value(self.loss, logits, labels)
