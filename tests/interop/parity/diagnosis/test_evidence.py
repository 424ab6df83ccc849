"""The hint is the first explanation that leaves only rounding of an error."""

import numpy as np
from wrong_activations import B, D, H, N, T, drawn

from jaxllm.interop.parity.diagnosis.evidence import Evidence, Explanation, Rows, first_true

OURS, THEIRS = drawn(B, T, D), drawn(B, T, D, seed=1)


def explaining(words, share):
    """Returns an explanation that leaves this share of the error."""
    return lambda evidence: iter([Explanation(THEIRS + share * (OURS - THEIRS), THEIRS, words)])


def found(*explanations):
    return first_true(Evidence("mlp", OURS, THEIRS, 1e-6), explanations)


def test_exact_explanations_come_before_approximate_ones():
    near, exact = explaining("near", 0.05), explaining("exact", 1e-7)
    assert found(near, exact) == "exact"
    assert found(exact, explaining("also exact", 0.0)) == "exact"
    assert found(near) == "near"


def test_an_explanation_that_leaves_a_fifth_of_the_error_is_rejected():
    assert found(explaining("far", 0.2), explaining("none", np.nan)) is None


def test_rows_of_activations_are_taken_when_one_is_looked_up():
    rows = Rows({"mlp": OURS, "attn": THEIRS}, [1])
    assert list(rows) == ["mlp", "attn"]
    assert len(rows) == 2
    np.testing.assert_array_equal(rows["attn"], THEIRS[1:])
    assert rows.get("norm") is None


def test_evidence_finds_siblings_parameters_and_sizes():
    around = {"layers.0.mlp.up_proj": OURS, "layers.0.attn.q": drawn(B, T, N, H), "embed": OURS}
    weights = {"layers.0.mlp.down_proj.kernel": THEIRS}
    evidence = Evidence("layers.0.mlp.down_proj", OURS, THEIRS, 1e-6, around, weights=weights)
    assert (evidence.parent, evidence.name) == ("layers.0.mlp", "down_proj")
    assert evidence.sibling("up_proj") is OURS
    assert evidence.parameter("kernel") is THEIRS
    assert evidence.parameter("bias") is None
    assert evidence.sizes == {"embed_dim": D, "head_dim": H}
