import re
from functools import partial
from pathlib import Path

import lightning as L
import pytest
from conftest import quick_first

FEW = {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test")}
README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("limits", quick_first(1, [FEW, {}]), ids=["few batches", "as it stands"])
def test_readme_code_runs(limits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(L, "Trainer", partial(L.Trainer, **limits))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})  # noqa: S102


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (README.parent / target).exists()] == []
