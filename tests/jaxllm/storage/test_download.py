"""Downloads: what is fetched, once per version, and the errors of stores in one line."""

import pytest
from memory_store import memory_store

from jaxllm.errors import MissingFileError, UserError
from jaxllm.hub import local_path
from jaxllm.storage.download import CACHE, download, download_small, find_matching, needed_of_run


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    with memory_store() as system:
        yield system


def test_a_folder_is_fetched_once_per_version(store, monkeypatch):
    store.pipe("s3://bucket/model/config.json", b"{}")
    store.pipe("s3://bucket/model/inner/weights.bin", b"123")
    found = download("s3://bucket/model/")
    assert (found / "inner" / "weights.bin").read_bytes() == b"123"
    assert found.name == "model"
    assert local_path("s3://bucket/model") == found
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "get_file", None)  # nothing is fetched again
        assert download("s3://bucket/model") == found
    store.pipe("s3://bucket/model/config.json", b"{ }")
    other = download("s3://bucket/model")
    assert (other / "config.json").read_bytes() == b"{ }"
    assert (found / "config.json").read_bytes() == b"{}"


def test_what_describes_a_folder_is_fetched_without_its_weights(store):
    store.pipe("s3://bucket/model/config.json", b"{}")
    store.pipe("s3://bucket/model/model.safetensors", b"1" * 1000)
    store.pipe("s3://bucket/model/checkpoints/4/_METADATA.json", b"{}")
    found = download_small("s3://bucket/model")
    assert [path.name for path in found.iterdir()] == ["config.json"]
    assert download_small("s3://bucket/model/config.json").read_bytes() == b"{}"
    store.pipe("s3://bucket/other/a.bin", b"1")
    for address in ("s3://bucket/other", "s3://bucket/nothing"):
        with pytest.raises(MissingFileError, match="nothing is there that describes a run"):
            download_small(address)


def test_a_file_keeps_its_name(store):
    store.pipe("gs://bucket/a/b.txt", b"text")
    found = download("gs://bucket/a/b.txt")
    assert (found.name, found.read_bytes()) == ("b.txt", b"text")


def test_patterns_match_files_in_order(store):
    for name in ("b.txt", "a.txt", "c.bin", "d.txt/e"):
        store.pipe(f"gs://bucket/{name}", name.encode())
    assert find_matching("gs://bucket/*.txt") == {"gs://bucket/a.txt": 5, "gs://bucket/b.txt": 5}
    assert find_matching("gs://bucket/*.none") == {}


def test_an_object_is_never_written_outside_the_cache(store, tmp_path):
    store.pipe("gs://bucket/model/config.json", b"{}")
    store.store["/bucket/model/../../../outside"] = store.store["/bucket/model/config.json"]
    with pytest.raises(UserError, match=r"which is refused: bucket/model/\.\./\.\./\.\./outside"):
        download("gs://bucket/model")
    assert not (tmp_path / "cache").exists()


def test_errors_are_one_line(store, monkeypatch):
    with pytest.raises(MissingFileError, match="gs://bucket/none: nothing is there"):
        download("gs://bucket/none")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden: https://storage\nAnonymous caller has no access")

    monkeypatch.setattr(type(store), "find", refuse)
    with pytest.raises(UserError, match=r"gs://bucket/a cannot be read: Forbidden: \S+$"):
        download("gs://bucket/a")


def test_of_a_run_the_newest_whole_checkpoint_is_needed():
    def step(number: int, *more: str) -> list[str]:
        names = ("_CHECKPOINT_METADATA", "model/d/x", "optimizer/d/y", "optimizer/_METADATA", *more)
        return [f"checkpoints/{number}/{name}" for name in names]

    names = ["config.yaml", "metrics.jsonl", "origin/tokenizer.json"]
    names += ["aside/700/model/d/x", "aside/700/commit_success.txt"]
    run = [*names, *step(4, "commit_success.txt"), *step(8, "commit_success.txt"), *step(12)]
    assert needed_of_run(run) == [
        *names[:3],
        *(f"checkpoints/8/{name}" for name in ("_CHECKPOINT_METADATA", "model/d/x")),
        *(f"checkpoints/8/{name}" for name in ("optimizer/_METADATA", "commit_success.txt")),
    ]
    assert needed_of_run(["config.json", "a/b"]) == ["config.json", "a/b"]
