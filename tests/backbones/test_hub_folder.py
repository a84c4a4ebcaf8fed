import json
from pathlib import Path

import pytest

from nc_finetune.backbones._weights.hub_folder import find_local_weights

USUAL = ("model.safetensors", "pytorch_model.bin")


def make_folder(folder: Path, *files: str, config: str | None = '{"architecture": "a"}') -> Path:
    for name in files:
        (folder / name).touch()
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


def test_folder_gives_its_configuration_and_the_preferred_file(tmp_path: Path) -> None:
    make_folder(tmp_path, "pytorch_model.bin", "model.safetensors", "other.pth")
    local = find_local_weights(tmp_path, "config.json", USUAL)
    assert (local.file, local.config) == (tmp_path / "model.safetensors", {"architecture": "a"})
    assert local.config_path == tmp_path / "config.json"


def test_only_file_of_a_folder_may_have_any_name(tmp_path: Path) -> None:
    make_folder(tmp_path, "other.pth", "README.md")
    assert find_local_weights(tmp_path, "config.json", USUAL).file == tmp_path / "other.pth"


def test_file_with_a_usual_name_belongs_to_the_configuration_beside_it(tmp_path: Path) -> None:
    make_folder(tmp_path, "model.safetensors")
    assert find_local_weights(tmp_path / "model.safetensors", "config.json", USUAL).config == {"architecture": "a"}


@pytest.mark.parametrize(("name", "config"), [("other.pth", "{}"), ("model.safetensors", None)])
def test_other_files_stand_for_themselves(tmp_path: Path, name: str, config: str | None) -> None:
    make_folder(tmp_path, name, config=config)
    local = find_local_weights(tmp_path / name, "config.json", USUAL)
    assert (local.file, local.config, local.config_path) == (tmp_path / name, None, None)


def test_folder_whose_name_ends_like_a_file_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights.pth"
    folder.mkdir()
    make_folder(folder, "model.safetensors")
    assert find_local_weights(folder, "config.json", USUAL).file == folder / "model.safetensors"


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder of weights at .*nowhere"):
        find_local_weights(tmp_path / "nowhere", "config.json", USUAL)


def test_folder_without_configuration_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path, "model.safetensors", config=None)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; pass the file of weights itself"):
        find_local_weights(tmp_path, "config.json", USUAL)


def test_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no weights \(\.safetensors, "):
        find_local_weights(make_folder(tmp_path), "config.json", USUAL)


def test_several_unusual_files_are_an_error_that_names_them(tmp_path: Path) -> None:
    make_folder(tmp_path, "b.pth", "a.pth")
    with pytest.raises(ValueError, match=r"several files of weights \(a\.pth, b\.pth\); pass one of them"):
        find_local_weights(tmp_path, "config.json", USUAL)


@pytest.mark.parametrize(("config", "reason"), [("{", "is not JSON"), (json.dumps([1]), "a JSON object, got list")])
def test_broken_configuration_is_an_error(tmp_path: Path, config: str, reason: str) -> None:
    make_folder(tmp_path, "model.safetensors", config=config)
    with pytest.raises(ValueError, match=rf"config\.json .*{reason}|config\.json {reason}"):
        find_local_weights(tmp_path, "config.json", USUAL)
