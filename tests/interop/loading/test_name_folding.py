"""Collapsed names stand for exactly the names that were given."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from jaxllm.interop.loading.name_folding import fold, in_short


def names(*texts: str) -> list[str]:
    return [folded.name for folded in fold(dict.fromkeys(texts))]


def unfold(folded: str) -> set[str]:
    """Expands a collapsed name the way a reader would."""
    parts = re.split(r"(\{[^}]*\})", folded)
    choices = []
    for part in parts:
        if not part.startswith("{"):
            choices.append([part])
            continue
        numbers = []
        for piece in part[1:-1].split(","):
            low, _, high = piece.partition("..")
            width = len(low)
            numbers += [f"{i:0{width}}" for i in range(int(low), int(high or low) + 1)]
        choices.append(numbers)
    return {"".join(choice) for choice in itertools.product(*choices)}


def test_layers_are_collapsed():
    assert names(*(f"layers.{i}.w" for i in range(32)), "norm.w") == ["layers.{0..31}.w", "norm.w"]


def test_several_axes_are_collapsed():
    experts = [f"layers.{i}.experts.{e}.w1.weight" for i in range(4) for e in range(8)]
    assert names(*experts) == ["layers.{0..3}.experts.{0..7}.w1.weight"]


def test_leading_zeros_are_kept():
    assert names(*(f"{i:02}/norm" for i in range(12))) == ["{00..11}/norm"]


def test_gaps_are_shown():
    assert names(*(f"layers.{i}.w" for i in (0, 1, 2, 5, 7, 8))) == ["layers.{0..2,5,7..8}.w"]


def test_missing_combination_splits_the_group():
    """Layer 1 lacks expert 3."""
    experts = [f"layers.{i}.experts.{e}.w" for i in range(3) for e in range(4)]
    experts.remove("layers.1.experts.3.w")
    assert names(*experts) == ["layers.{0,2}.experts.{0..3}.w", "layers.1.experts.{0..2}.w"]


def test_constant_number_is_not_collapsed():
    assert names("conv.0.weight", "layers.5.w") == ["conv.0.weight", "layers.5.w"]


def test_only_whole_name_components_are_indices():
    assert names("w1", "w2", "block3.a", "block4.a") == ["w1", "w2", "block3.a", "block4.a"]


def test_names_of_different_kinds_are_not_collapsed():
    kinds = {f"layers.{i}.w": "wide" if i % 2 else "narrow" for i in range(6)}
    assert [folded.name for folded in fold(kinds)] == ["layers.{0,2,4}.w", "layers.{1,3,5}.w"]


part = st.sampled_from(["a", "b", "0", "1", "2", "3", "10", "w1"])


@given(st.dictionaries(st.lists(part, min_size=1, max_size=4).map(".".join), st.booleans()))
def test_collapsed_names_stand_for_exactly_the_given_names(items):
    found = fold(items)
    members = [name for folded in found for name in folded.members]
    assert sorted(members) == sorted(items)
    for folded in found:
        assert unfold(folded.name) == set(folded.members)
        assert len({items[name] for name in folded.members}) == 1


def test_many_names_are_told_by_their_modules():
    assert in_short(["a.0.w", "a.1.w", "b"]) == "a.{0..1}.w, b"
    many = [f"model.vision.{letter}.w" for letter in "abcdefg"]
    assert in_short([*many, "proj.w"]) == "8 tensors of vision, proj"
