"""Data files by names, patterns and folders."""

import pytest

from jaxllm.errors import MissingFileError
from jaxllm.train.data.files import find_files


def names(folder, pattern: str) -> list[str]:
    return [name.removeprefix(f"{folder}/") for name in find_files([f"{folder}/{pattern}"])]


def test_names_patterns_and_folders(tmp_path):
    for name in (
        "b.txt",
        "a.jsonl",
        "c[1].txt",
        "README.md",
        ".x/d.txt",
        "in/e.parquet",
        "in/.f.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(tmp_path, "") == ["a.jsonl", "b.txt", "c[1].txt", "in/e.parquet"]
    assert names(tmp_path, "*.txt") == ["b.txt", "c[1].txt"]
    assert names(tmp_path, "**/*.parquet") == ["in/e.parquet"]
    assert names(tmp_path, "c[1].txt") == ["c[1].txt"]
    assert find_files([f"{tmp_path}/b.txt"]) == {f"{tmp_path}/b.txt": 5}


@pytest.mark.parametrize("pattern", ["nothing*.txt", "nowhere", "empty"])
def test_what_matches_nothing_is_named(pattern, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("x")
    with pytest.raises(MissingFileError, match=f"no file matches '{tmp_path}/{pattern[:7]}"):
        find_files([f"{tmp_path}/{pattern}"])
