"""The reference continues prompts greedily and by beams, and says where noise decides."""

import numpy as np
import pytest
import torch

from jaxllm.interop.parity.execution.torch_decode import NEW_TOKENS, Prompted

PROMPTS = [[5, 17, 3], [60]]


@pytest.fixture(scope="module")
def llama(make_llama):
    return make_llama(num_hidden_layers=1).eval()


@pytest.fixture(scope="module")
def decoded(llama):
    return Prompted(llama, None).decode(PROMPTS)


def test_greedy_tokens_are_the_likeliest(llama, decoded):
    assert [len(new) for new in decoded.greedy] == [NEW_TOKENS, NEW_TOKENS]
    assert decoded.logits_PNV.argmax(-1).tolist() == decoded.greedy
    whole = torch.tensor([[*PROMPTS[0], *decoded.greedy[0][:-1]]])
    with torch.no_grad():
        logits = llama(whole).logits[0, 2:].numpy()
    np.testing.assert_allclose(decoded.logits_PNV[0], logits, rtol=1e-4, atol=1e-4)


def likelihood(llama, prompt, new):
    logits_NV = Prompted(llama, None).logits([prompt], [new])[0].astype(np.float64)
    log_sums_N = np.logaddexp.reduce(logits_NV, axis=-1)
    return (logits_NV[np.arange(len(new)), new] - log_sums_N).sum()


def test_beams_are_no_less_likely_than_greedy_tokens(llama, decoded):
    pairs = zip(PROMPTS, decoded.greedy, decoded.beams, strict=True)
    for prompt, greedy, beams in pairs:
        assert likelihood(llama, prompt, beams) >= likelihood(llama, prompt, greedy) - 1e-5


def test_noise_is_small_and_filters_leave_something(decoded):
    assert 0 < decoded.floor < 1e-5
    assert 0 < decoded.noise < 1e-3
    counts = decoded.kept_PNV.sum(-1)
    assert counts.min() >= 1
    assert counts.max() <= 20
    assert decoded.logits_PNV.argmax(-1).tolist() == [
        [int(np.where(kept, row, -np.inf).argmax()) for kept, row in zip(*pair, strict=True)]
        for pair in zip(decoded.kept_PNV, decoded.logits_PNV, strict=True)
    ]


def test_its_own_search_finds_what_transformers_does(llama, decoded, monkeypatch):
    monkeypatch.delattr(llama, "generation_config")  # as of a plain module
    again = Prompted(llama, None).decode(PROMPTS)
    assert (again.greedy, again.beams) == (decoded.greedy, decoded.beams)


def test_the_generation_config_is_restored(llama):
    before = llama.generation_config
    Prompted(llama, None).decode([[7]])
    assert llama.generation_config is before
