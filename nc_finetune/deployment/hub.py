"""The Hugging Face hub: deltas from there, its errors in words."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from nc_finetune.errors import UnavailableError, missing_extra

HUB = "hub:"
MODEL_FILE, CARD_FILE = "model.safetensors", "README.md"
_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^\s~^:?*\[\\]+))?")
_REFUSED, _EXISTS = (401, 403), 409


def is_hub_id(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is an id of the hub.

    Example:
        >>> is_hub_id("hub:user/flowers@v1"), is_hub_id("tuned/model.safetensors")
        (True, False)
    """
    return os.fspath(path).startswith(HUB)


def local_model(path: str | os.PathLike[str]) -> Path:
    """Return a file of a model on this machine; one of the hub is fetched, unless it is here in its last state.

    Only ``model.safetensors`` is fetched, whatever else lies there, and without a network what was fetched before is
    taken.

    Args:
        path: ``"hub:user/name"``, ``"hub:user/name@revision"`` with a branch, tag or commit, or a path, which comes
            back as it is.

    Returns:
        The file.

    Raises:
        ImportError: If huggingface_hub is not installed.
        ValueError: If the id is none, or nothing is there: no such repository, revision, or delta in it.
        UnavailableError: If the hub cannot be reached.

    Example:
        >>> local_model("tuned/model.safetensors").name
        'model.safetensors'
    """
    if not is_hub_id(path):
        return Path(path)
    repo, revision = parse_hub_id(os.fspath(path))
    with hub_errors(repo, revision):
        return Path(hub_api().hf_hub_download(repo, MODEL_FILE, revision=revision))


def parse_hub_id(text: str) -> tuple[str, str | None]:
    """Return repository and revision of an id, with or without ``hub:`` in front.

    Raises:
        ValueError: If it is none.

    Example:
        >>> parse_hub_id("hub:user/flowers@v1")
        ('user/flowers', 'v1')
    """
    found = _ID.fullmatch(text.removeprefix(HUB))
    if found is None:
        raise ValueError(f"an id of the hub is user/name, or user/name@revision to load, got {text!r}")
    return found["repo"], found["revision"]


def hub_api() -> Any:
    """Return a client of the hub, at ``HF_ENDPOINT`` where that is set.

    Raises:
        ImportError: If huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise missing_extra("huggingface_hub", "hub", "the Hugging Face hub") from error
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="nc-finetune")


@contextmanager
def hub_errors(repo: str, revision: str | None = None, *, writing: bool = False) -> Iterator[None]:
    """Turn what the client raises inside into one error that says what to do.

    Args:
        repo: What is asked for.
        revision: Of it.
        writing: Whether something is written there, not read.

    Raises:
        ValueError: If the hub answers that it cannot be had.
        OSError: As it is, if it is of this machine, such as a full disk.
        UnavailableError: If it does not answer, or not as a hub.
    """
    api = hub_api()
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # those of its HTTP library, too, which changes
        if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
            raise  # words of its own about an argument
        if _is_of_this_machine(error):
            raise
        raise _in_words(error, repo, revision, api.endpoint, "write to" if writing else "read") from error


def _is_of_this_machine(error: Exception) -> bool:
    of_network = (ConnectionError, TimeoutError, socket.gaierror)
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, of_network)


def _in_words(error: Exception, repo: str, revision: str | None, endpoint: str, what_for: str) -> Exception:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # what the hub said before the client looked on this machine
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return ValueError(f"{repo} is open to those only whom its owner lets in: ask on {endpoint}/{repo}, and log in")
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{repo} has no revision {revision!r} on the hub; leave it out for the newest")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"there is no {repo!r} at {endpoint}, or it is private and not of this login; check the name, or log in by"
            " `hf auth login`"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ValueError(f"{repo} holds no {MODEL_FILE}: it is no delta of nc-finetune; see {endpoint}/{repo}")
    if status == _EXISTS:
        return ValueError(f"{repo} exists on the hub; choose another name, or add to it with --update (update=True)")
    if status in _REFUSED:
        return ValueError(f"the hub lets this login not {what_for} {repo}: {_short(error)}; log in by `hf auth login`")
    if status is not None:
        return UnavailableError(f"the hub at {endpoint} answers {status}: {_short(error)}")
    instead = f", or take a file in place of {repo}" if what_for == "read" else ""
    return UnavailableError(
        f"the hub at {endpoint} cannot be reached, or does not answer as one ({_short(error)}); check the network"
        f"{instead}"
    )


def _short(error: Exception) -> str:
    return shorten(str(error), 200).rstrip(".") or type(error).__name__
