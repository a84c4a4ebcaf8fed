"""Show notebooks as pages: code, text, and the outputs that they were saved with; nothing is run here."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

_LINK = re.compile(r"(?<=\]\()([\w./-]+)\.ipynb(?=[)#])")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page beside every notebook, with its pictures."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path, folder = Path(str(notebook.abs_src_path)), Path(notebook.src_uri).parent
        text, resources = MarkdownExporter().from_filename(str(path), {"output_files_dir": f"{path.stem}_files"})
        files.append(File.generated(config, str(folder / f"{path.stem}.md"), content=text))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, str(folder / name), content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to notebooks, as they work in a checkout, to these pages."""
    return _LINK.sub(r"\1.md", markdown)
