"""Options of a command, as its function says: names, types and defaults by its signature, help by its docstring.

jsonargparse, which does this for ``fit``, cannot here: it would spell ``--image_size``, want ``--dry_run true`` and
``--backbones '["a", "b"]'``, and answer what cannot be in several lines.
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent, indent
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from nc_finetune._common.atomic_files import check_file


class CommandParser(argparse.ArgumentParser):
    r"""Understands what a function takes, and raises what is wrong in place of printing all options and leaving.

    Parameters by keyword alone are options: flags are ``bool``, ``list`` takes several words, and pairs that
    annotate a type are more arguments of ``add_argument``. The docstring has sections of arguments and examples.

    Args:
        function: What is to be called, as ``run`` of what is parsed.
        more: As for ``argparse.ArgumentParser``.

    Example:
        >>> def greet(name: str, *, times: PositiveInt = 1) -> int:
        ...     "Greet.\n\nArgs:\n    name: whom\n    times: how often\n\nExamples:\n    greet you"
        >>> vars(CommandParser(greet).parse_args(["you", "--times", "3"]))
        {'name': 'you', 'times': 3, 'run': <function greet at ...>}
    """

    def __init__(self, function: Callable[..., int] | None = None, **more: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        if function is None:
            return
        self.description, arguments, examples = _sections(function)
        self.epilog = f"examples:\n{indent(dedent(examples), '  ')}"
        texts = dict(re.findall(r"^    (\w+): (.+(?:\n     .+)*)", arguments, re.MULTILINE))
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            self._add(parameter, texts.get(parameter.name, ""))
        self.set_defaults(run=function)

    def _add(self, parameter: inspect.Parameter, text: str) -> None:
        name, default, keywords = parameter.name, parameter.default, _keywords(parameter.annotation)
        if parameter.kind is parameter.KEYWORD_ONLY:
            name = f"--{name.replace('_', '-')}"
            keywords |= {"required": True} if default is parameter.empty else {"default": default}
            if "default:" not in text and not any(default is value for value in (parameter.empty, None, False)):
                text += " (default: %(default)s)"
        self.add_argument(name, help=text, **keywords)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the words."""
        raise ValueError(f"{message}; {self.prog} --help lists every option")


def add_command(commands: Any, function: Callable[..., int]) -> None:
    """Add a function to what ``add_subparsers`` has returned, with the sentence that opens its docstring."""
    purpose = _sections(function)[0].partition("\n")[0].removesuffix(".")
    commands.add_parser(function.__name__, help=purpose[:1].lower() + purpose[1:], function=function)


def _sections(function: Callable[..., int]) -> list[str]:
    """Split a docstring, which is not there under ``python -OO``, into what is done, arguments, and examples."""
    return re.split(r"\n\n(?:Args|Examples):\n", inspect.getdoc(function) or "\n\nArgs:\n\n\nExamples:\n")


def _keywords(kind: Any) -> dict[str, Any]:
    """Say how argparse reads a type."""
    base, *others = get_args(kind) or [kind]
    if get_origin(kind) is Annotated:
        return {**_keywords(base), **dict(others)}
    if get_origin(kind) is Literal:
        return {"choices": (base, *others)}
    if get_origin(kind) is list:
        return {"nargs": "+", **_keywords(base)}
    if NoneType in others:
        return _keywords(base)
    return {"action": "store_true"} if kind is bool else {"type": kind}


def _where(kind: Callable[[str], float], holds: Callable[[float], bool], words: str) -> tuple[str, Any]:
    """Return the argument of ``add_argument`` that takes only numbers for which something holds."""

    def parse(word: str) -> float:
        with suppress(ValueError):
            number = kind(word)
            if holds(number):
                return number
        raise argparse.ArgumentTypeError(f"must be {words}, got {word}")

    return "type", parse


def _file(word: str) -> Path:
    path = Path(word)
    check_file(path)
    return path


def check_executor(executor: str, ray_address: str | None, cpus: float, gpus: float) -> None:
    """Refuse what is said of tasks of Ray where there are none.

    Raises:
        ValueError: If an address, or other CPUs or GPUs than the defaults, are given without ``--executor ray``.
    """
    given = {"--ray-address": ray_address is not None, "--cpus": cpus != 1, "--gpus": gpus != 0}
    if executor != "ray" and any(given.values()):
        named = next(name for name, there in given.items() if there)
        raise ValueError(f"{named} is of tasks of Ray, and there are none; say --executor ray, too, or leave it out")


NonNegativeInt = Annotated[int, _where(int, lambda number: number >= 0, "a whole number of at least 0")]
PositiveInt = Annotated[int, _where(int, lambda number: number >= 1, "a whole number of at least 1")]
NonNegativeFloat = Annotated[float, _where(float, lambda number: 0 <= number < math.inf, "at least 0")]
PositiveFloat = Annotated[float, _where(float, lambda number: 0 < number < math.inf, "above 0")]
Share = Annotated[float, _where(float, lambda number: 0 < number < 1, "between 0 and 1, such as 0.9")]
NewFile = Annotated[Path, ("type", _file)]
Images = Annotated[PositiveInt, ("metavar", "N")]
Pixels = Annotated[PositiveInt, ("metavar", "PIXELS")]
