"""`python docs/module_map.py`: writes the tables of modules in docs/architecture.md.

Each package is a heading with the first line of its docstring, and a table of its modules with
theirs. A test holds the page to what this would write.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("jaxllm", "interop", "train")
BEGIN, END = "<!-- modules: written by docs/module_map.py -->\n", "<!-- end of modules -->\n"


def purpose(file: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


def packages() -> list[Path]:
    """Every folder of the source with Python files, parents before what is in them."""
    files = (file for folder in FOLDERS for file in (ROOT / folder).rglob("__init__.py"))
    found = [file.parent.relative_to(ROOT) for file in files]
    return sorted(found, key=lambda path: (FOLDERS.index(path.parts[0]), path))


def section(package: Path) -> Iterator[str]:
    """The lines of one package."""
    yield from (f"### {package.as_posix()}/", "", purpose(ROOT / package / "__init__.py"), "")
    modules = [file for file in sorted((ROOT / package).glob("*.py")) if file.stem != "__init__"]
    if modules:
        yield from ("| module | purpose |", "|---|---|")
        yield from (f"| `{file.stem}` | {purpose(file)} |" for file in modules)
        yield ""


def with_modules(page: str) -> str:
    """The page with its tables brought up to date."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n".join(line for package in packages() for line in section(package))
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_modules(PAGE.read_text()))
