import re
import shutil
from pathlib import Path

import pytest

from nc_finetune.cli import recipes
from nc_finetune.cli.recipes import copy_recipe, find_recipe, list_recipes, recipe_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a checkout with two recipes in the place of this one; return its folder of recipes."""
    folder = tmp_path / "checkout/recipes"
    (folder / "pets").mkdir(parents=True)
    (folder / "first.yaml").write_text("# What the first does.\n#\n# More of it.\nkey: 1\n", encoding="utf-8")
    (folder / "pets/second.yaml").write_text("## Fünf Katzen\nkey: 2\n", encoding="utf-8")
    (folder / "README.md").write_text("no recipe", encoding="utf-8")
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path / "checkout/nc_finetune")
    return folder


def test_the_recipes_of_a_checkout_are_beside_the_package() -> None:
    assert recipe_folder() == ROOT / "recipes"


def test_the_wheel_holds_the_recipes_where_they_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = re.findall(r'^"recipes" = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    shutil.copytree(ROOT / "recipes", tmp_path / target)
    expected = list_recipes()
    monkeypatch.setattr(recipes, "_PACKAGE", tmp_path / "nc_finetune")
    assert recipe_folder() == tmp_path / target
    assert list_recipes() == expected


@pytest.mark.usefixtures("made_up")
def test_recipes_are_listed_with_the_sentence_that_opens_them() -> None:
    assert list_recipes() == {"first": "What the first does.", "pets/second": "Fünf Katzen"}


def test_every_recipe_opens_with_a_sentence() -> None:
    openings = list_recipes()
    assert openings
    assert [name for name, opening in openings.items() if not re.fullmatch(r"[A-Z].+\.", opening)] == []


@pytest.mark.parametrize("name", ["pets/second", "pets/second.yaml", "recipes/pets/second.yaml"])
def test_a_recipe_is_found_by_name(made_up: Path, name: str) -> None:
    assert find_recipe(name) == made_up / "pets/second.yaml"


@pytest.mark.usefixtures("made_up")
def test_a_file_comes_before_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").touch()
    assert find_recipe("first.yaml") == Path("first.yaml")


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", ["frist", "", "missing/my", "recipes"])
def test_unknown_recipe_lists_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^unknown recipe '{name}'.* Valid: first, pets/second$"):
        find_recipe(name)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("name", ["missing/my.yaml", "my.yml"])
def test_a_file_that_is_not_there_is_no_unknown_recipe(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^no such file: {name}; nc-finetune recipes lists"):
        find_recipe(name)


@pytest.mark.usefixtures("made_up")
def test_unknown_recipe_suggests_near_ones() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'first'\?"):
        find_recipe("frist")


def test_a_copy_is_the_same_and_makes_its_folder(made_up: Path, tmp_path: Path) -> None:
    copy = copy_recipe("pets/second", tmp_path / "a/b")
    assert copy == tmp_path / "a/b/second.yaml"
    assert copy.read_bytes() == (made_up / "pets/second.yaml").read_bytes()


@pytest.mark.usefixtures("made_up")
def test_a_copy_that_was_changed_is_not_overwritten(tmp_path: Path) -> None:
    copy_recipe("first", tmp_path).write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"first\.yaml is there already; choose another folder or delete it"):
        copy_recipe("first", tmp_path)
    assert (tmp_path / "first.yaml").read_text(encoding="utf-8") == "mine"


@pytest.mark.usefixtures("made_up")
def test_copying_an_unknown_recipe_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown recipe"):
        copy_recipe("third", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_recipe_that_cannot_be_read_leaves_no_empty_copy(
    made_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_recipe("first")
    monkeypatch.setattr(recipes, "find_recipe", lambda name: found)
    (made_up / "first.yaml").unlink()
    with pytest.raises(FileNotFoundError):
        copy_recipe("first", tmp_path)
    assert not (tmp_path / "first.yaml").exists()
