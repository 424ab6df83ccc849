"""A locked file is free again when its holder closes it."""

from jaxllm.checkpointing.file_lock import claim


def test_only_one_can_claim_a_file(tmp_path):
    file = tmp_path / "lock"
    with file.open("a") as first:
        assert claim(first)
        with file.open("a") as second:
            assert not claim(second)
    with file.open("a") as third:
        assert claim(third)
