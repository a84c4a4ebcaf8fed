"""Draw every kind of picture that the project draws, and write the page that shows them.

    python -m benchmarks.gallery [--out docs]

Those of reports are drawn from the results in ``benchmarks/results``, those of callbacks, profiles and metrics by short
runs on scikit-learn's digits; those of the theory lie where ``python -m benchmarks.theory`` has put them, and are shown
from there. What is shown is in ``gallery.yaml``. Needs the extras offline, plot and report; half a minute on one core.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import lightning as L
import torch
import yaml

from nc_finetune import ImageClassifier, ImageData, LayerwiseNC1, NeuralCollapse
from nc_finetune.callbacks import CollapseMonitor
from nc_finetune.cli import main as nc_finetune
from nc_finetune.methods import FullFinetuning
from nc_finetune.report import write_report
from nc_finetune.results import merge_results

HERE = Path(__file__).parent
_OPENING = """\
# Gallery

Every kind of picture that the project draws, each with what draws it. All of them again:

```sh
python -m benchmarks.gallery
```
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the page.

    Attributes:
        name: Of its file, without the ending.
        title: Its heading.
        says: What is to be seen.
        source: What draws it: a command, or Python.
        drawn: Pattern of where that puts it, where it is not by its name.
    """

    name: str
    title: str
    says: str
    source: str
    drawn: str = ""

    @property
    def file(self) -> str:
        return f"{self.name}.png"


Sections = Mapping[str, Sequence[Picture]]


def read_pictures() -> Sections:
    """Return the pictures by heading."""
    read = yaml.safe_load((HERE / "gallery.yaml").read_text(encoding="utf-8"))
    return {heading: [Picture(**entry) for entry in entries] for heading, entries in read.items()}


def draw_reports(folder: Path) -> None:
    """Draw what a report of committed results shows."""
    for name in ("quickstart", "low_data"):
        results, problems = merge_results([HERE / "results" / name])
        write_report(results, folder / name, problems)


def draw_callbacks(folder: Path) -> None:
    """Draw what callbacks leave in the log folder of a short fit."""
    torch.manual_seed(0)
    data = ImageData("sklearn:digits", image_size=64, samples_per_class=10)
    model = ImageClassifier("tf_efficientnet_lite0", 10, weights="package", method=FullFinetuning())
    callbacks = [LayerwiseNC1(by_class=True, folder=folder), CollapseMonitor(folder=folder)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    L.Trainer(max_epochs=5, callbacks=[*callbacks], enable_model_summary=False, **quiet).fit(model, datamodule=data)


def draw_metric(folder: Path) -> None:
    """Draw what torchmetrics makes of one state."""
    torch.manual_seed(0)
    labels = torch.arange(500) % 10
    metric = NeuralCollapse(num_classes=10, num_features=64)
    metric.update(torch.randn(500, 64) + 4 * torch.eye(64)[labels], labels)
    metric.plot()[0].savefig(folder / "neural_collapse.png", dpi=100, bbox_inches="tight")


def draw_profile(folder: Path) -> None:
    """Draw what ``nc-finetune profile`` does, by the command that the page shows."""
    command = read_pictures()["Of a profile"][-1].source
    nc_finetune([*command.split()[1:], "--out", str(folder)])


DRAWERS: tuple[Callable[[Path], None], ...] = (draw_reports, draw_callbacks, draw_metric, draw_profile)


def draw(out: Path) -> None:
    """Draw all pictures into ``out/gallery`` and write ``out/gallery.md``."""
    sections = read_pictures()
    (out / "gallery").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for drawer in DRAWERS:
            drawer(Path(folder))
        for picture in chain(*sections.values()):
            (path,) = Path(folder).glob(picture.drawn or picture.file)
            shutil.copyfile(path, out / "gallery" / picture.file)
    (out / "gallery.md").write_text(page(sections), encoding="utf-8")


def page(sections: Sections) -> str:
    """Return the text of the page."""
    return "\n".join([_OPENING, *chain(*(_section(*section) for section in sections.items())), *_theory()])


def _section(heading: str, pictures: Sequence[Picture]) -> Iterator[str]:
    yield f"## {heading}\n"
    for picture in pictures:
        language = "sh" if picture.source.startswith("nc-finetune") else "text"
        yield f"### {picture.title}\n\n{picture.says}\n\n```{language}\n{picture.source}\n```\n"
        yield f"![{picture.title}](gallery/{picture.file})\n"


def _theory() -> Iterator[str]:
    """Show what the theory bench has drawn, with the words of its page."""
    yield "## Of the theory\n\n```sh\npython -m benchmarks.theory --jobs 2\n```\n"
    text = (HERE / "results" / "theory" / "theory.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        for words, file in re.findall(r"!\[(.+?)\]\((.+?)\)", section):
            yield f"### {heading}\n\n{words}\n\n![{heading}](../benchmarks/results/theory/{file})\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of gallery.md and gallery/")
    draw(parser.parse_args().out)
