"""Deltas to the Hugging Face hub, with a card that says what was measured."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from pathlib import Path

from nc_finetune.backbones import weights_origin
from nc_finetune.deployment.hub import CARD_FILE, MODEL_FILE, hub_api, hub_errors, parse_hub_id
from nc_finetune.deployment.model_card import base_weights, model_card
from nc_finetune.errors import UnavailableError
from nc_finetune.files.delta import read_delta


def push_model(
    model: str | os.PathLike[str],
    repo: str,
    *,
    public: bool = False,
    update: bool = False,
    licence: str | None = None,
    card: str | os.PathLike[str] | None = None,
) -> str:
    """Put a delta on the Hugging Face hub (extra ``hub``), with a card; ``load_delta("hub:user/name")`` has it again.

    Two files go there, in one commit: the delta and the card. The report of a tuning stays here: it shows images.

    Args:
        model: A delta, or the folder of a tuning.
        repo: ``"user/name"``, the repository to make.
        public: Whether everybody may see it; otherwise it is private.
        update: Commit to a repository that exists, if it is as public or private as is asked for.
        licence: Of the model, by its short name on the hub, such as ``"apache-2.0"``; ``None`` leaves it open.
        card: A file of one's own in place of the card that is written, such as an edited :func:`model_card`.

    Returns:
        Its address.

    Raises:
        ImportError: If huggingface_hub is not installed.
        FileNotFoundError: If there is no such delta or card.
        ValueError: If the file is no delta or an old one, nobody is logged in, the repository exists, is public where
            it was to be private or the other way round, or the login may not write there.
        UnavailableError: If the hub cannot be reached.

    Warns:
        UserWarning: If the pre-trained weights are random, or a file, whose path is in the delta: others do not have
            them.
    """
    if card is not None and licence is not None:
        raise ValueError("a card of one's own says its licence itself, on top; leave licence out, or the card")
    path = delta_in(model)
    _warn_of_private_base(path)
    text = model_card(path, repo, licence=licence) if card is None else Path(card).read_text(encoding="utf-8")
    repo = check_login(repo)
    api = hub_api()
    from huggingface_hub import CommitOperationAdd

    with hub_errors(repo, writing=True):
        address = str(api.create_repo(repo, private=not public, exist_ok=update))
    if update:
        _check_visibility(repo, address, public)
    try:
        with hub_errors(repo, writing=True):
            api.create_commit(
                repo,
                [CommitOperationAdd(MODEL_FILE, path), CommitOperationAdd(CARD_FILE, text.encode("utf-8"))],
                commit_message=f"Upload by nc-finetune {version('nc-finetune')}",
            )
    except (UnavailableError, ValueError) as error:
        raise type(error)(f"{error}; nothing was pushed, and {repo} is there: try again with --update") from error
    return address


def _check_visibility(repo: str, address: str, public: bool) -> None:
    """Refuse to show everybody what was to be private, and to hide what was to be shown."""
    with hub_errors(repo):
        private = bool(hub_api().repo_info(repo).private)
    if private == (not public):
        return
    found, wanted = ("private", "public") if private else ("public", "private")
    flag = "leave --public (public=True) out" if private else "say --public (public=True)"
    raise ValueError(
        f"{repo} is {found} on the hub, and the model was to be {wanted}; nothing was pushed: {flag}, or make the"
        f" repository {wanted} on {address}/settings"
    )


def check_push(repo: str) -> None:
    """Find out before long work whether it can be pushed in the end.

    Args:
        repo: As for :func:`push_model`.

    Raises:
        ImportError: If huggingface_hub is not installed.
        ValueError: If nobody is logged in, the hub does not know the login, or the repository exists.
        UnavailableError: If the hub cannot be reached.
    """
    repo = check_login(repo)
    with hub_errors(repo, writing=True):
        hub_api().whoami()  # a token that has expired finds no repository
        exists = hub_api().repo_exists(repo)
    if exists:
        raise ValueError(f"{repo} exists on the hub; choose another name, or push the model there once it is made")


def check_login(repo: str) -> str:
    """Return the repository, once its name is one and somebody is logged in.

    Raises:
        ImportError: If huggingface_hub is not installed.
        ValueError: If not.
    """
    name, revision = parse_hub_id(repo)
    if revision is not None:
        raise ValueError(f"what is pushed becomes the newest state of {name}; leave @{revision} out")
    hub_api()
    from huggingface_hub import get_token

    if get_token() is None:
        raise ValueError("pushing needs a login: run `hf auth login` once, or set HF_TOKEN to a token that may write")
    return name


def delta_in(model: str | os.PathLike[str]) -> Path:
    """Return a delta, given itself or the folder of a tuning.

    Raises:
        ValueError: If it is a checkpoint.
    """
    path = Path(model)
    if path.suffix == ".ckpt":
        raise ValueError(
            f"{path} is a checkpoint, with all weights and a pickle's dangers for who loads it; save a delta of it:"
            " save_delta(load_model(path)[0], 'model.safetensors')"
        )
    return path / MODEL_FILE if path.is_dir() else path


def _warn_of_private_base(path: Path) -> None:
    delta = read_delta(path)
    weights = base_weights(delta)
    if weights is None:
        said = "random weights, or others that it does not name; it is loaded by those alone who have them"
    elif weights_origin("", weights) is None:
        said = f"the file {weights}, which its metadata name; whoever loads it needs that file's weights"
    else:
        return
    warnings.warn(f"{path} builds on {said}", stacklevel=3)
