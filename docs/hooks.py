"""MkDocs hooks: pages made from files of the repository's root, and the sources of the API."""

import posixpath
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Pages that are files of the root, which are also read on their own.
FROM_ROOT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
LINK = re.compile(r"\]\((?!\w+:|#)([^)#]+)")
FENCE = re.compile(r"^```(\w+) (?:run|run slow|file=(\S+))$", re.MULTILINE)


# A copy, since griffe follows no links to folders; removed when the process ends.
SOURCES = tempfile.TemporaryDirectory(prefix="jaxllm-docs-")


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: Any) -> Any:
    """Gives mkdocstrings the package as it installs: `jaxllm` with `interop` and `train` in it."""
    package = Path(SOURCES.name) / "jaxllm"
    for source, target in {
        "jaxllm": package,
        "interop": package / "interop",
        "train": package / "train",
    }.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / source, target, ignore=ignored, dirs_exist_ok=True)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [SOURCES.name]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are files of the root."""
    for page, source in FROM_ROOT.items():
        text = LINK.sub(_link_in_site, (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def _link_in_site(match: re.Match[str]) -> str:
    """A link of a root file as the site has it: `docs/rules.md` is `rules.md`."""
    path = posixpath.normpath(match[1])
    pages = {source: page for page, source in FROM_ROOT.items()}
    return f"]({pages.get(path, path.removeprefix('docs/'))}"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns the marks of runnable blocks and files into what Markdown knows."""
    return FENCE.sub(
        lambda fence: f'```{fence[1]} title="{fence[2]}"' if fence[2] else f"```{fence[1]}",
        markdown,
    )
