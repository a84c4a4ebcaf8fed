"""Private names of Lightning, and of torch's ``DataLoader``, that have no public counterpart: used here alone.

Each was tried with lightning 2.6.1 to 2.6.6. Of a version that lacks one, :func:`require` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

TRIED = "2.6.1 to 2.6.6"
# What subclasses of Lightning's own classes override or call.
OF_MODULE = ("_on_before_batch_transfer", "_apply_batch_transfer_handler")
OF_MODEL_CHECKPOINT = (
    "_format_checkpoint_name",
    "_link_checkpoint",
    "_monitor_candidates",
    "_remove_checkpoint",
    "_save_checkpoint",
    "_save_none_monitor_checkpoint",
    "_save_topk_checkpoint",
    "_should_remove_checkpoint",
    "_should_save_on_train_epoch_end",
)
OF_CLI = ("_instantiate_trainer",)


def require(holder: Any, *names: str) -> None:
    """Refuse a Lightning whose objects lack private names that are called, or overridden, here.

    Args:
        holder: An object, or a class.
        names: Of its attributes.

    Raises:
        RuntimeError: If one is not there; the message tells the versions that were tried.

    Example:
        >>> require(DataLoader, "_get_iterator")
    """
    if missing := [name for name in names if not hasattr(holder, name)]:
        kind = holder if isinstance(holder, type) else type(holder)
        raise RuntimeError(
            f"{kind.__module__}.{kind.__name__} has no {', '.join(missing)}, which nc_finetune needs; it was tried with"
            f" lightning {TRIED}, and this is {version('lightning')}: install one of those"
        )


def _get(holder: Any, name: str) -> Any:
    require(holder, name)
    return getattr(holder, name)


def current_datamodule(trainer: Any) -> Any:
    """Return the datamodule in use (``_datahook_selector``); ``trainer.datamodule`` stays where loaders are passed."""
    if not hasattr(trainer, "fit_loop"):  # none is attached
        return None
    return getattr(_get(_get(trainer, "_data_connector"), "_datahook_selector"), "datamodule", None)


def is_attached(module: Any) -> bool:
    """Tell whether a module has a trainer (``_trainer``); to ask for ``trainer`` raises where it has none."""
    return _get(module, "_trainer") is not None


def loaders_in_use(loop: Any) -> list[Any] | None:
    """Return the loaders that a loop goes through (``_combined_loader``), ``None`` before it has any."""
    combined = _get(loop, "_combined_loader")
    return None if combined is None else list(combined.flattened)


def loaders_to_come(loop: Any) -> Any:
    """Return what was passed to the trainer as loaders (``_data_source``), ``None`` where a module makes them."""
    source = _get(loop, "_data_source")
    return None if source.is_module() else source.instance


def fetch_anew(loop: Any) -> None:
    """Let a loop begin anew with what its loaders give (``_data_fetcher``)."""
    iter(_get(loop, "_data_fetcher"))


def logged_names(loop: Any) -> set[str]:
    """Return the names that were logged in a loop (``_results``)."""
    return {result.meta.name for result in _get(loop, "_results").values()}


def accumulates(loop: Any) -> bool:
    """Tell whether the fit loop leaves gradients for the next batch (``_should_accumulate``)."""
    return bool(_get(loop, "_should_accumulate")())


def count_batch(loop: Any) -> None:
    """Let what is logged at the end of an epoch without batches stand at a step (``_batches_that_stepped``)."""
    require(loop, "_batches_that_stepped")
    loop._batches_that_stepped += 1


def forget_restart(*loops: Any) -> None:
    """Let loops go on as if none were restarting (``_restarting``); the public setter insists with ``max_steps``."""
    for loop in loops:
        require(loop, "_restarting")
        loop._restarting = False


def before_transfer(module: Any, batch: Any, dataloader_idx: int) -> Any:
    """Call the first transfer hook, of datamodule or module (``_on_before_batch_transfer``)."""
    return _get(module, "_on_before_batch_transfer")(batch, dataloader_idx=dataloader_idx)


def inner_sampler(dataset: Any) -> Any:
    """Return the sampler that Lightning has wrapped into a dataset under DDP (``_sampler``), or ``None``."""
    return getattr(dataset, "_sampler", None)


def averages(callbacks: Iterable[Any]) -> list[nn.Module]:
    """Return the averages of weights that callbacks keep (``_average_model``), after their ``setup``."""
    found = (getattr(callback, "_average_model", None) for callback in callbacks)
    return [average for average in found if isinstance(average, nn.Module)]


def forget_averages(callbacks: Iterable[Any]) -> None:
    """Let go of averages of the weights that a fit has left (``_average_model``).

    Lightning would go on to put them in the place of whatever model is validated or loaded next.
    """
    for callback in callbacks:
        if isinstance(getattr(callback, "_average_model", None), nn.Module):
            callback._average_model = None


def pruned_parameters(callback: Any) -> Any:
    """Return the pairs of module and name that a ``ModelPruning`` prunes (``_parameters_to_prune``)."""
    return _get(callback, "_parameters_to_prune")


def replace_layer_sync(strategy: Any, kind: type, other: Any) -> None:
    """Let a strategy synchronise BatchNorm by another plugin (``_layer_sync``), where it is of some kind."""
    if type(getattr(strategy, "_layer_sync", None)) is kind:  # one device has none
        strategy._layer_sync = other


def is_compiled(module: nn.Module) -> bool:
    """Tell whether ``torch.compile`` runs a module, or one inside (``_compiler_ctx``, and names of torch's own)."""
    return getattr(module, "_compiler_ctx", None) is not None or any(
        hasattr(part, "_orig_mod")
        or getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(part.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for part in module.modules()
    )


def has_workers(loader: DataLoader[Any]) -> bool:
    """Tell whether a loader keeps workers from one epoch to the next, and they run (``_iterator``)."""
    return getattr(loader, "_iterator", None) is not None


def replace_parts(loader: DataLoader[Any], **parts: Any) -> None:
    """Set parts of a loader that it refuses to have set, lest a sampler go on with the old dataset (``__dict__``)."""
    loader.__dict__.update(parts, _iterator=None)
