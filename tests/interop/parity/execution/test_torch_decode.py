"""Generation by the reference: greedy and beam search, logits, noise and ties."""

import numpy as np
import pytest
import torch

from jaxllm.interop.parity.execution.torch_decode import (
    ALL,
    KEPT,
    NEW_TOKENS,
    ReferenceGenerator,
)

PROMPTS = [[5, 17, 3], [60]]


@pytest.fixture(scope="module")
def llama(make_llama):
    return make_llama(num_hidden_layers=1).eval()


@pytest.fixture(scope="module")
def decoded(llama):
    return ReferenceGenerator(llama, None).decode(PROMPTS)


def test_greedy_tokens_have_the_largest_logits(llama, decoded):
    assert [len(new) for new in decoded.greedy] == [NEW_TOKENS, NEW_TOKENS]
    assert decoded.logits_PNV.argmax(-1).tolist() == decoded.greedy
    whole = torch.tensor([[*PROMPTS[0], *decoded.greedy[0][:-1]]])
    with torch.no_grad():
        logits = llama(whole).logits[0, 2:].numpy()
    np.testing.assert_allclose(decoded.logits_PNV[0], logits, rtol=1e-4, atol=1e-4)


def test_logits_of_given_continuations_equal_the_generated_ones(llama, decoded):
    found = ReferenceGenerator(llama, None).logits(PROMPTS, decoded.greedy)
    np.testing.assert_allclose(found, decoded.logits_PNV, rtol=1e-4, atol=1e-4)
    other = ReferenceGenerator(llama, None).logits(
        PROMPTS, [[1, *new[1:]] for new in decoded.greedy]
    )
    np.testing.assert_array_equal(other[:, 0], found[:, 0])
    assert not np.allclose(other[:, 1], found[:, 1], atol=1e-2)


def test_noise_is_small_and_the_filters_keep_the_top_token(decoded):
    for name in (ALL, KEPT):
        found = decoded.distances.spread(name)
        size = np.linalg.norm(decoded.logits_PNV)
        assert 0 < found.reference <= found.scale < found.limit < 1e-4 * size
    assert 0 < decoded.noise < 1e-3
    counts = decoded.kept_PNV.sum(-1)
    assert counts.min() >= 1
    assert counts.max() <= 20
    assert decoded.logits_PNV.argmax(-1).tolist() == [
        [int(np.where(kept, row, -np.inf).argmax()) for kept, row in zip(*pair, strict=True)]
        for pair in zip(decoded.kept_PNV, decoded.logits_PNV, strict=True)
    ]


def test_the_plain_search_agrees_with_transformers(llama, decoded, monkeypatch):
    monkeypatch.delattr(llama, "generation_config")  # as for a plain module
    again = ReferenceGenerator(llama, None).decode(PROMPTS)
    assert (again.greedy, again.beams) == (decoded.greedy, decoded.beams)


def test_the_generation_config_is_restored(llama):
    before = llama.generation_config
    ReferenceGenerator(llama, None).decode([[7]])
    assert llama.generation_config is before
