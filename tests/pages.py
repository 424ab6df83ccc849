"""Runnable code blocks of documentation pages.

A block's mark follows its language: a `run` block is run by a test, a `run slow` block only by
`make test-exhaustive`, and a `file=NAME` block is written to that file before later blocks are run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python|yaml) (run|run slow|file=\S+)\n(.*?)^```$", re.DOTALL | re.M)


class Block(NamedTuple):
    """A marked code block of a page."""

    language: str
    mark: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that the block defines; empty for a block to run."""
        return self.mark.partition("file=")[2]


def blocks_of(page: Path) -> list[Block]:
    """Returns the marked blocks of a page, in order."""
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def shown_files(page: Path) -> dict[str, str]:
    """Returns the contents of the files that a page defines, by name."""
    return {block.file: block.text for block in blocks_of(page) if block.file}


def run_blocks(page: Path, folder: Path, *, slow: bool, as_reader: bool = False) -> None:
    """Writes and runs a page's blocks in order, in one folder; slow blocks only if `slow`."""
    # A reader has neither the tests' eight virtual devices nor their compiler flags, which save a
    # third of the time.
    own = ("JAX_", "XLA_") if as_reader else ("JAX_",)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    for block in blocks_of(page):
        if block.file:
            (folder / block.file).write_text(block.text)
        elif slow or block.mark == "run":
            done = subprocess.run(
                _command(block),
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


def _command(block: Block) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-c", block.text]
    bin_folder = Path(sys.executable).parent
    return ["bash", "-euc", f"export PATH={bin_folder}:$PATH\n{block.text}"]
