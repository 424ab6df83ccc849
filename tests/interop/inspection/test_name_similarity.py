"""Names with the same meaning share their normalized words."""

import dataclasses

import pytest
from tiny import TINY

from jaxllm.interop.inspection.name_similarity import Vocabulary, words


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("blocks.{L}.selfAttention.wq.weight", {"attn", "q"}),
        ("transformer.h.{L}.attn.query.bias", {"attn", "q", "bias"}),
        ("model.embed_tokens.weight", {"embed", "token"}),
        ("ln_f.weight", {"norm", "final"}),
        ("wqkv", {"q", "k", "v"}),
        ("norm2", {"norm", "2"}),
    ],
)
def test_words_keep_only_what_has_meaning(name, found):
    assert words(name) == found


def test_a_name_is_most_similar_to_the_array_it_means():
    targets = [(f"layers.{{L}}.attn.{name}_proj.kernel",) for name in "qkvo"]
    vocabulary = Vocabulary(dataclasses.replace(TINY, scan_layers=False), targets)
    for letter, target in zip("qkv", targets, strict=False):
        likeness = {
            own: vocabulary.likeness(f"h.{{L}}.attention.w{letter}.weight", own) for own in targets
        }
        assert max(likeness, key=likeness.get) == target
        assert all(0 <= value <= 1 for value in likeness.values())


def test_a_bias_is_less_similar_to_a_kernel():
    target = ("layers.{L}.attn.q_proj.kernel",)
    vocabulary = Vocabulary(TINY, [target])
    bias, weight = (f"layers.{{L}}.attn.q_proj.{kind}" for kind in ("bias", "weight"))
    assert vocabulary.likeness(bias, target) < vocabulary.likeness(weight, target)
