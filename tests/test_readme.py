"""Every command that the README marks as runnable runs, in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(sh|python) run\n(.*?)```", re.DOTALL)


def test_the_commands_of_the_readme_run(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert len(blocks) >= 3
    # As a reader's shell has it, without this suite's eight devices.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    for language, text in blocks:
        command = [sys.executable, "-c", text]
        if language == "sh":
            bin_folder = Path(sys.executable).parent
            command = ["bash", "-euc", f"export PATH={bin_folder}:$PATH\n{text}"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


COLLECTIONS = {"families", "reference"}  # files of one kind each, which a map need not name


def test_the_map_names_every_file():
    readme = (ROOT / "README.md").read_text()
    folders = ("jaxllm", "interop", "train")
    found = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    files = [file for file in found if file.parent.name not in COLLECTIONS]
    assert all(f"`{folder}/`" in readme for folder in COLLECTIONS)
    names = {file.stem for file in files if not file.stem.startswith("__")}
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", readme))
    assert missing == []
