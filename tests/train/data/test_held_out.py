"""Held-out split: depends on the content of an example only."""

import pytest

from jaxllm.errors import UserError
from jaxllm.train.data.held_out import check_split, split_held_out


def test_an_invalid_split_is_reported_with_the_names_of_its_fields():
    with pytest.raises(UserError, match=r"^data\.held_out=nan is not in \[0, 1\)"):
        check_split(float("nan"), 0)
    for seed in (-1, 2**32, 2**70):
        with pytest.raises(UserError, match=rf"^data\.seed={seed} is not in \[0, 2\*\*32\)"):
            check_split(0.1, seed)


@pytest.mark.parametrize(
    ("fraction", "least", "most"), [(0.0, 0, 0), (0.1, 60, 140), (0.9, 850, 950)]
)
def test_a_fraction_is_held_out_and_copies_stay_together(fraction, least, most):
    contents = [b"%d" % (i % 1000) for i in range(2000)]
    held = split_held_out(contents, fraction)
    assert held[:1000] == held[1000:]
    assert least <= sum(held[:1000]) <= most
    assert split_held_out(contents[::-1], fraction) == held[::-1]
    assert sum(split_held_out([b"a", b"b"], fraction)) == (fraction > 0)
