"""Documentation site: builds without warnings, is self-contained and matches the repository."""

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# A path in a folder of the repository, in backticks.
NAMED_FILE = re.compile(r"`((?:jaxllm|interop|train|tests|docs|configs|benchmarks)/[\w./-]*)`")
# References to other sites that a browser fetches when it shows the page.
FETCHED = re.compile(
    r"<(?:link|script|img|iframe|source)\b[^>]*\b(?:href|src)=[\"']?(?:https?:)?//"
)
IMPORTED = re.compile(r"(?:@import|url\()[\s\"']*(?:https?:)?//")


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Builds the site of a checkout; warnings are errors."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_expected_pages_exist(site):
    guides = ("install", "import_export", "use_in_jax", "train", "parity", "pods", "rules")
    evidence = ("families", "mutations", "architecture", "changes", "api/interop")
    for page in ("index", *guides, *evidence):
        assert (site / f"{page}.html").is_file(), page


def test_the_site_fetches_nothing_from_other_sites(site):
    html, css = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert html
    assert css
    assert [page.name for page in html if FETCHED.search(page.read_text())] == []
    assert [style.name for style in css if IMPORTED.search(style.read_text())] == []
    # Mermaid diagrams would fetch a script.
    assert 'class="mermaid"' not in "".join(page.read_text() for page in html)


def test_the_reference_shows_every_public_name(site):
    packages = ("config", "models", "generation", "interop", "interop.parity", "train")
    for package in packages:
        module = importlib.import_module(f"jaxllm.{package}")
        text = (site / "api" / f"{package.rpartition('.')[2]}.html").read_text()
        shown = set(re.findall(rf'id="{re.escape(module.__name__)}\.(\w+)"', text))
        assert set(module.__all__) <= shown


def test_the_reference_describes_the_fields_of_configs(site):
    pages = {page.stem: page.read_text() for page in (site / "api").glob("*.html")}
    assert [name for name, text in pages.items() if "__pydantic_config__" in text] == []
    assert "whether tokens see no later tokens. Default:" in pages["config"]
    assert "maximum global gradient norm. Default:" in pages["train"]


def test_the_reference_joins_the_lines_of_what_is_returned(site):
    text = re.sub(r"<[^>]*>", "", (site / "api" / "generation.html").read_text())
    assert "first end-of-sequence token.\nSeveral of a prompt are adjacent" in text


def test_broken_links_are_errors(tmp_path):
    """In a checkout without the API reference, which is slow to build."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "jaxllm", "interop", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for page in (tmp_path / "docs" / "api").glob("*.md"):
        page.write_text(f"# {page.stem}\n")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "install.md").open("a") as install:
        install.write("\n[page](gone.md) [anchor](train.md#gone) [name][jaxllm.gone]\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 3, done.stderr
    assert all("install.md" in line and "gone" in line for line in warnings)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_files_named_by_a_page_exist(page):
    named = {name for name in NAMED_FILE.findall(page.read_text()) if "NAME" not in name}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_module_map_is_up_to_date():
    spec = importlib.util.spec_from_file_location("module_map", ROOT / "docs" / "module_map.py")
    module_map = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module_map)
    page = module_map.PAGE.read_text()
    assert page == module_map.with_modules(page), "run python docs/module_map.py"
    for folder in module_map.FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            assert f"### {file.parent.relative_to(ROOT).as_posix()}/\n" in page
            assert file.stem == "__init__" or f"| `{file.stem}` | " in page
    undocumented = re.findall(r"^\| `\w+` \|\s*\|$", page, re.MULTILINE)
    assert undocumented == []
