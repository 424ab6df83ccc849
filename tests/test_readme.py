"""Every block that the README or a page of docs/ marks as runnable runs, page by page."""

import re

import pytest
from pages import ROOT, run_blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    marked = re.findall(r"^```\w+ (?:run|file=\S+)$", page.read_text(), re.MULTILINE)
    assert run_blocks(page, tmp_path) == len(marked)
    assert marked or page.name != "README.md"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


# Files of one kind each, which a map need not name.
COLLECTIONS = {"families", "reference", "commands"}


def test_the_map_names_every_file():
    readme = (ROOT / "README.md").read_text()
    folders = ("jaxllm", "interop", "train")
    found = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    files = [file for file in found if file.parent.name not in COLLECTIONS]
    assert all(f"`{folder}/`" in readme for folder in COLLECTIONS)
    names = {file.stem for file in files if not file.stem.startswith("__")}
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", readme))
    assert missing == []
