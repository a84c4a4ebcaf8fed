"""What a file may name: to read it must neither run its author's code nor fetch or unpickle what it points to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# A model file (delta, checkpoint) names the parts of a model, a recipe those of a whole run.
MODEL_PARTS = ("nc_finetune.backbones", "nc_finetune.heads", "nc_finetune.losses", "nc_finetune.methods", "torch.nn")
ALLOWED = (
    "nc_finetune",
    "nc_finetune.files.DeltaIO",
    "nc_finetune.files.delta_io.DeltaIO",
    "nc_finetune.run.cell",
    "nc_finetune.run.grid",
    "nc_finetune.run.specs",
    "torch.nn",
    "torch.optim",
    "torchvision.transforms",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
)
# Of our own: what reads files, writes files, or builds whatever a file describes.
REFUSED = (
    "nc_finetune._common",
    "nc_finetune.cli",
    "nc_finetune.deployment",
    "nc_finetune.files",
    "nc_finetune.report",
    "nc_finetune.results",
    "nc_finetune.run",
)
# Arguments that reach another library. Open_clip builds other towers, and fetches their weights, by what else it is
# given; peft imports modules and loads files by it.
OPTIONS = {
    "open_clip": (
        *("force_context_length", "force_custom_text", "force_image_size", "force_patch_dropout"),
        *("force_quick_gelu", "init_logit_bias", "init_logit_scale", "nonscalar_logit_scale"),
    ),
    "peft": (
        *("alpha", "alpha_pattern", "decompose_both", "decompose_factor", "exclude_modules", "fan_in_fan_out"),
        *("init_lora_weights", "init_weights", "layers_pattern", "layers_to_transform", "lora_alpha"),
        *("lora_bias", "lora_dropout", "module_dropout", "rank_dropout", "rank_dropout_scale", "rank_pattern"),
        *("use_dora", "use_effective_conv2d", "use_rslora"),
    ),
}
_restricted: ContextVar[bool] = ContextVar("restricted", default=False)


@contextmanager
def only_known_classes(trust: bool) -> Iterator[None]:
    """Let what is read inside name classes of the allow-list alone.

    jsonargparse keeps its list for the rest of the process: a command reads one recipe and ends.

    Args:
        trust: Let it name any class.
    """
    if not trust:
        from jsonargparse import set_parsing_settings

        set_parsing_settings(import_path_denylist=["*", *REFUSED], import_path_allowlist=list(ALLOWED))
    token = _restricted.set(not trust)
    try:
        yield
    finally:
        _restricted.reset(token)


def check_import_path(path: str) -> None:
    """Refuse the path of a class that is not on the allow-list, where :func:`only_known_classes` restricts.

    Args:
        path: The import path.

    Raises:
        ValueError: If it is not on the list.

    Example:
        >>> check_import_path("my.own.Method")  # in Python everything may be named: it is code already
    """
    verdict = next((prefix in ALLOWED for prefix in _prefixes(path) if prefix in (*ALLOWED, *REFUSED)), False)
    if _restricted.get() and not verdict:
        raise ValueError(untrusted(path))


def is_model_part(path: str) -> bool:
    """Tell whether a model file may name a class, by its import path.

    Example:
        >>> is_model_part("torch.nn.Linear"), is_model_part("nc_finetune.data.ImageData")
        (True, False)
    """
    return any(prefix in MODEL_PARTS for prefix in _prefixes(path))


def check_options(library: str, given: Iterable[str], refused: Collection[str] = ()) -> None:
    """Refuse arguments of another library that name files, addresses or modules; here, too, in Python.

    Args:
        library: The library, a key of ``OPTIONS`` where it has a list of what may be given.
        given: Names of the arguments.
        refused: Names that may not, where there is no such list.

    Raises:
        ValueError: If one is not allowed.

    Example:
        >>> check_options("open_clip", ["pretrained_image_path"])
        Traceback (most recent call last):
            ...
        ValueError: 'pretrained_image_path' is no option for open_clip here: it takes force_context_length, ...
    """
    allowed = OPTIONS.get(library)
    for name in given:
        if allowed is not None and name not in allowed:
            raise ValueError(f"{name!r} is no option for {library} here: it takes {', '.join(allowed)}")
        if name in refused:
            raise ValueError(
                f"{name!r} is no option for {library} here: what the network is goes into its name, and where its"
                " weights come from into weights=; leave it out"
            )


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def untrusted(path: str) -> str:
    """Say why a path is refused, and what to do."""
    packages = [name for name in ALLOWED if not any(prefix in REFUSED for prefix in _prefixes(name))]
    return f"the recipe names {path}, which is outside {', '.join(packages)}; pass --trust if you trust its author"
