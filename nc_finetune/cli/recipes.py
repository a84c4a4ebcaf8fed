"""``nc-finetune recipes``, and recipes by name: YAML files that travel with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from nc_finetune.errors import unknown_name

_PACKAGE = Path(__file__).parents[1]
_FILES = (".yaml", ".yml")


def recipes(
    *, copy: Annotated[str | None, ("metavar", "NAME")] = None, to: Annotated[Path | None, ("metavar", "DIR")] = None
) -> int:
    """List the recipes, or copy one.

    A recipe is a YAML file for fit or benchmark; it opens with how to start it, what to change and its limits.

    Args:
        copy: name of the recipe to copy, as the list has it
        to: folder to copy it to (default: here)

    Examples:
        nc-finetune recipes --copy quickstart --to mine
    """
    from nc_finetune._common.terminal import name_table, open_console

    if copy is None and to is not None:
        raise ValueError("--to is where --copy NAME puts a recipe, and none is named; say --copy, too, or leave it out")
    console = open_console()
    if copy is not None:
        console.print(copy_recipe(copy, to or Path()), soft_wrap=True)
        return 0
    table = name_table(["recipe", "what it does"], [])
    for name, purpose in list_recipes().items():
        table.add_row(name, purpose)
    console.print(table)
    return 0


def recipe_folder() -> Path:
    """Return the folder of the recipes: inside an installed package, or beside it in a checkout."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def list_recipes() -> dict[str, str]:
    """Return every recipe by name, with the sentence that opens it.

    Example:
        >>> "quickstart" in list_recipes()
        True
    """
    folder = recipe_folder()
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): _opening(path) for path in paths}


def find_recipe(name: str) -> Path:
    """Find a recipe.

    Args:
        name: Name of a recipe of the package, or path of a YAML file.

    Returns:
        Path of the file.

    Raises:
        ValueError: If there is no recipe of that name; the message lists those that there are.
        FileNotFoundError: If it is the name of a YAML file, and there is none.

    Example:
        >>> find_recipe("quickstart").name
        'quickstart.yaml'
    """
    if Path(name).is_file():
        return Path(name)
    known = list_recipes()
    short = _short(name)
    if short not in known and name.endswith(_FILES):
        raise FileNotFoundError(f"no such file: {name}; nc-finetune recipes lists what there is by name")
    if short not in known:
        raise unknown_name("recipe", name, known)
    return recipe_folder() / f"{short}.yaml"


def is_recipe(name: str) -> bool:
    """Tell whether a recipe of the package is called so.

    Example:
        >>> is_recipe("recipes/quickstart.yaml"), is_recipe("photos")
        (True, False)
    """
    return _short(name) in list_recipes()


def _short(name: str) -> str:
    # `recipes/quickstart.yaml` works from everywhere, too: it is how a checkout would name it.
    return name.removeprefix("recipes/").removesuffix(".yaml")


def copy_recipe(name: str, folder: Path) -> Path:
    """Copy a recipe, to be changed.

    Args:
        name: As for :func:`find_recipe`.
        folder: Where to; made if it is not there.

    Returns:
        Path of the copy.

    Raises:
        FileExistsError: If there is a file of that name: what was changed is not overwritten.
    """
    source = find_recipe(name)
    content = source.read_bytes()
    target = folder / source.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise FileExistsError(f"{target} is there already; choose another folder or delete it") from error
    return target


def _opening(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip()
