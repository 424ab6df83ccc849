"""The blocks of a page that are marked as runnable, and the files that it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(sh|python) (run|file=(\S+))\n(.*?)```", re.DOTALL)


def shown_files(page: Path) -> dict[str, str]:
    """The files that a page shows, by name."""
    return {name: text for _, _, name, text in BLOCK.findall(page.read_text()) if name}


def run_blocks(page: Path, folder: Path) -> int:
    """Writes and runs a page's blocks in order, in one folder; how many there were."""
    # As a reader's shell has it, without this suite's eight devices.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    blocks = BLOCK.findall(page.read_text())
    for language, _, name, text in blocks:
        if name:
            (folder / name).write_text(text)
            continue
        command = [sys.executable, "-c", text]
        if language == "sh":
            bin_folder = Path(sys.executable).parent
            command = ["bash", "-euc", f"export PATH={bin_folder}:$PATH\n{text}"]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return len(blocks)
