"""Differences between plain data are found at any depth and named by their path."""

from jaxllm.differences import differences


def test_fields_are_named_by_their_path():
    old = {"a": 1, "b": {"c": [1, 2], "d": 3}, "e": 4}
    new = {"a": 1, "b": {"c": [1, 3], "d": 3}, "f": {"g": 5}}
    assert list(differences(old, new)) == [
        ("b.c", [1, 2], [1, 3]),
        ("e", 4, None),
        ("f", None, {"g": 5}),
    ]
    assert list(differences(old, old)) == []
