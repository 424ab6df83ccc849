"""Sums of collectives by kind and by mesh axes."""

import pytest

from jaxllm.train.planning.collectives import Collective, moved_by_axes, share, total_by_kind

ONES = [
    Collective("all-gather", ("fsdp",), "bf16", 2, 3.0),
    Collective("all-reduce", ("tensor",), "f32", 1, 9.0),
    Collective("all-gather", ("fsdp",), "bf16", 5, 4.0),
    Collective("reduce-scatter", ("fsdp",), "f32", 1, 1.0),
]


def test_sums_are_by_kind_axes_and_dtype_and_by_axes():
    assert total_by_kind(ONES) == [
        ONES[1],
        Collective("all-gather", ("fsdp",), "bf16", 7, 7.0),
        ONES[3],
    ]
    assert moved_by_axes(ONES) == {("tensor",): 9.0, ("fsdp",): 8.0}


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("all-gather", 3 / 4),
        ("reduce-scatter", 3 / 4),
        ("all-reduce", 6 / 4),
        ("all-to-all", 3 / 4),
    ],
)
def test_a_device_receives_all_but_its_own_part(kind, moved):
    assert share(kind, 4) == moved
    assert share("collective-permute", 4) == 1
