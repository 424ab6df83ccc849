"""The prefixes of a checkpoint are found from its names, and lead from one to the other."""

import pytest

from jaxllm.interop.families.common.naming.prefixes import find_prefixes

USUAL = ("model.embed_tokens.weight", "model.layers.0.w", "lm_head.weight")


@pytest.mark.parametrize(
    ("names", "base", "outer"),
    [
        (USUAL, "model.", ""),
        (("embed_tokens.weight", "layers.0.w"), "", ""),
        (("embed_tokens.weight", "layers.0.w", "score.weight"), "", ""),
        (("embed_tokens.weight", "layers.0.w", "lm_head.weight"), "", ""),
        (tuple("model." + name for name in USUAL), "model.model.", "model."),
        (tuple("policy." + name for name in USUAL), "policy.model.", "policy."),
        (tuple("language_model." + n for n in USUAL), "language_model.model.", "language_model."),
        (
            ("model.language_model.embed_tokens.weight", "lm_head.weight", "model.visual.w"),
            "model.language_model.",
            "",
        ),
        (("transformer.embed_tokens.weight", "qa_outputs.weight"), "transformer.", ""),
        (("model.layers.0.w",), "model.", ""),  # without an embedding nothing is known
    ],
)
def test_they_are_found_and_lead_both_ways(names, base, outer):
    found = find_prefixes(names, "model.", ["embed_tokens.weight"])
    assert (found.base, found.outer) == (base, outer)
    usual = found.usual(dict.fromkeys(names))
    own = [name for name in usual if "visual" not in name]
    assert [found.stored(name) for name in own] == [n for n in names if "visual" not in n]
    if len(names) == 3 and "lm_head.weight" in names[2]:
        assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(usual)


def test_the_usual_spelling_wins_over_a_second_model():
    names = (*USUAL, *("draft." + name for name in USUAL))
    assert find_prefixes(names, "model.", ["embed_tokens.weight"]).are_usual


def test_a_family_without_a_prefix_may_be_wrapped():
    names = ("model.shared.weight", "model.encoder.w", "model.lm_head.weight")
    found = find_prefixes(names, "", ["shared.weight"])
    assert list(found.usual(dict.fromkeys(names))) == [n.removeprefix("model.") for n in names]
    assert [found.stored(name.removeprefix("model.")) for name in names] == list(names)


def test_the_embedding_may_be_stored_under_the_name_of_a_copy():
    names = ("transformer.encoder.embed_tokens.weight", "transformer.encoder.w")
    kinds = ["shared.weight", "encoder.embed_tokens.weight"]
    assert find_prefixes(names, "", kinds).base == "transformer."
