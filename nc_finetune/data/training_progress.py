"""What a checkpoint says of the data of a run, and how a run goes on from there."""

from __future__ import annotations

from typing import Any

from nc_finetune.data.training_order import TrainingLoader


class TrainingProgress:
    """How far training has come through its images.

    Attributes:
        loader: The loader that training reads from, once there is one.
    """

    def __init__(self) -> None:
        self.loader: TrainingLoader | None = None
        self._resumed: dict[str, int] | None = None

    def follow(self, loader: TrainingLoader) -> None:
        """Take a new loader, which goes on where a checkpoint stopped; a later one begins a new epoch."""
        if self.loader is not None and self.loader.waits:  # loaded anew before what was resumed has gone on
            self._resumed = self.loader.state_dict()
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
            self._resumed = None
        self.loader = loader

    def state_dict(self, splits_hash: str) -> dict[str, Any]:
        """Return what a checkpoint says: which images are in which split, and how many batches were given."""
        # Lightning saves the loader's state, too, but loads it too late where the schedule asks for its length.
        return {"splits_hash": splits_hash, "training": None if self.loader is None else self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any], splits_hash: str) -> None:
        """Let the next loader go on from there.

        Args:
            state: What a checkpoint says.
            splits_hash: Hash of which images are in which split now.

        Raises:
            ValueError: If the checkpoint was trained on other splits.
        """
        if state.get("splits_hash") != splits_hash:
            raise ValueError(
                f"the checkpoint was trained on other splits (hash {state.get('splits_hash')}, here"
                f" {splits_hash}); resume with the same source, seed and sizes"
            )
        self._resumed = state["training"]
