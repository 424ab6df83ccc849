"""Runnable blocks: every marked block of the README and of docs/ runs without an error."""

import re

import pytest
from pages import ROOT, blocks_of, run_blocks
from tiers import examples

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKS = {page: {block.mark for block in blocks_of(page)} for page in PAGES}
WITH_QUICK = [page for page, marks in MARKS.items() if "run" in marks]
WITH_SLOW = [page for page, marks in MARKS.items() if "run slow" in marks]
# The pages that a new user reads first. The slow test runs the quick blocks of the others too.
FIRST = [page for page in WITH_QUICK if page.stem in ("README", "install")]
NO_SLOW = [page for page in WITH_QUICK if page in FIRST or page not in WITH_SLOW]
# Guides that must have runnable blocks, so that tests keep them correct.
GUIDES = {"README", "install", "import_export", "use_in_jax", "train", "pods", "parity", "rules"}


@pytest.mark.torch
@pytest.mark.parametrize("page", examples(NO_SLOW, PAGES[0]), ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run_blocks(page, tmp_path, slow=False, as_reader=page in FIRST)


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", WITH_SLOW, ids=lambda page: page.name)
def test_all_blocks_of_a_page_run(page, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run_blocks(page, tmp_path, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_mark_of_a_page_is_valid(page):
    marked = re.findall(r"^```\w+ .+$", page.read_text(), re.MULTILINE)
    assert len(marked) == len(blocks_of(page)), marked


def test_the_guides_have_blocks_to_run():
    assert {page.stem for page in [*WITH_QUICK, *WITH_SLOW]} >= GUIDES


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
