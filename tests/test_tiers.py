"""Cases of a parametrized test are divided between the tiers as its marker says."""

import subprocess
import sys
from pathlib import Path

TEST = """
import pytest

@pytest.mark.cases(2, exhaustive=3)
@pytest.mark.parametrize("i", range(10))
def test_one(i): ...

@pytest.mark.cases(1)
@pytest.mark.parametrize("i", [0, 1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_other(i): ...
"""
CONFTEST = """
import pytest, tiers

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    tiers.divide_cases(items)
"""


def selected(folder: Path, markers: str) -> list[str]:
    command = [*("-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"), "-m", markers]
    done = subprocess.run(
        [sys.executable, *command, "-c", "/dev/null", "--rootdir", folder, folder],
        env={"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


def test_cases_are_evenly_spread_over_the_tiers(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TEST)
    quick = selected(tmp_path, "not exhaustive and not campaign")
    assert quick == ["test_one[0]", "test_one[5]", "test_other[0]"]
    later = selected(tmp_path, "exhaustive and not campaign")
    assert later == [
        *("test_one[1]", "test_one[3]", "test_one[7]"),
        *("test_other[1]", "test_other[2]"),
    ]
    assert len([*quick, *later, *selected(tmp_path, "campaign")]) == 13
