"""README and docs: Python runs, commands are such as the command line understands, links lead somewhere."""

import contextlib
import importlib.util
import re
import shlex
from functools import partial
from importlib.metadata import entry_points, metadata
from pathlib import Path

import fake_hub
import lightning as L
import pytest
from conftest import quick_where
from torch.distributed.run import get_args_parser
from tuning_photos import write_photos

from nc_finetune.cli import main
from nc_finetune.cli.app import _TRAINER_COMMANDS, _parser
from nc_finetune.run import read_grid

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted(path for path in (ROOT / "docs").rglob("*.md"))]
FEW = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test")}
LANGUAGES = {"python", "sh", "text", "yaml"}
TAKE_LONG = {"get-started", "doubts", "export", "lightning-module", "readout", "share", "speed"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def _where_pages_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of photos, and of a checkout what pages read."""
    for folder in ("benchmarks", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "page",
    quick_where(lambda page: page.stem not in TAKE_LONG, [page for page in PAGES if blocks(page, "python")]),
    ids=name,
)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L, "Trainer", partial(L.Trainer, **FEW))
    names: dict[str, object] = {}
    with fake_hub.logged_in(monkeypatch, tmp_path):
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), {} if page == README else names)  # noqa: S102


@pytest.mark.slow
def test_the_session_of_the_readme_is_what_tune_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (session,) = blocks(README, "text")
    assert main(["tune", "sklearn:digits", "--test", "0.2", "--minutes", "0.05"]) == 0
    printed = {without_numbers(line) for line in capsys.readouterr().out.splitlines()}
    assert [line for line in session.splitlines() if without_numbers(line) not in printed] == []


def without_numbers(line: str) -> str:
    return re.sub(r"\d[\d.,]*", "N", line)


COMMANDS = sorted(
    {line.partition("  #")[0].strip() for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z0-9_]+=", word)]
    match words:
        case ["nc-finetune", "recipes", *_]:
            assert main(words[1:]) == 0
        case ["nc-finetune", "predict", model, *_] if model.endswith((".safetensors", ".ckpt")) or "hub:" in model:
            _parser().parse_args(words[1:])
        case ["nc-finetune", command, *_] if command in _TRAINER_COMMANDS:
            with contextlib.suppress(SystemExit):
                assert main([*words[1:], "--print_config"]) is None  # it ends before it returns
            assert "class_path:" in capsys.readouterr().out
        case ["nc-finetune", *arguments]:
            _parser().parse_args(arguments)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case ["torchrun", *rest]:
            get_args_parser().parse_args(rest)
            if "fit" in rest:
                test_commands_are_understood(shlex.join(["nc-finetune", *rest[rest.index("fit") :]]), capsys)
        case ["ray", "start", *rest]:
            start = pytest.importorskip("ray.scripts.scripts").start
            assert {word for word in rest if word.startswith("--")} <= {name for it in start.params for name in it.opts}
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["hf", "auth", "login"]:
            assert entry_points(group="console_scripts", name="hf")  # of huggingface_hub
        case ["pip", "install", package]:
            extras = metadata("nc-finetune").get_all("Provides-Extra") or []
            assert set(re.findall(r"\w+", package.partition("[")[2])) <= set(extras)
        case _:
            pytest.fail(f"nobody knows how to try {line!r}")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name)
def test_grids_are_read(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        (tmp_path / "grid.yaml").write_text(block)
        assert read_grid(tmp_path / "grid.yaml").methods


def test_no_block_escapes() -> None:
    fences = {page: re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2] for page in PAGES}
    assert [
        (name(page), language) for page, found in fences.items() for language in found if language not in LANGUAGES
    ] == []


def test_code_comes_within_two_screens() -> None:
    def lines_before(page: Path) -> int:
        return page.read_text(encoding="utf-8").partition("\n```")[0].count("\n")

    assert [
        name(page) for page in PAGES if "\n```" in page.read_text(encoding="utf-8") and lines_before(page) > 100
    ] == []


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (README.parent / target).exists()] == []
