"""RoPE that depends on the sequence length, with lengths that change between calls."""

import jax
import numpy as np
import pytest
import torch
from hf_cases import CASES, tokens_of
from tiny import relative_l2

from jaxllm.interop import load_pretrained

TOLERANCE = 1e-5  # relative L2 of logits, float32
# Where their frequencies change.
LIMITS = {"llama/dynamic-beyond": 128, "llama/longrope-beyond": 64, "phi3/longrope-beyond": 64}


@pytest.fixture(scope="module", params=LIMITS)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "original"
    original = CASES[request.param].build()
    original.save_pretrained(folder)
    return LIMITS[request.param], original, load_pretrained(folder)


@jax.jit
def step(model, tokens, positions, cache):
    out = model(tokens, positions=positions, cache=cache)
    return out.logits, out.cache


def test_a_cache_growing_past_the_limit_equals_transformers(case):
    """Cached keys stay as written; queries use the frequencies of the length so far."""
    limit, original, model = case
    tokens = tokens_of(original, batch_size=2)[:, : limit + 6]
    prompt = limit - 4
    cache, theirs = model.init_cache(2, limit + 6), None
    for start, stop in [(0, prompt), *((t, t + 1) for t in range(prompt, limit + 6))]:
        part = tokens[:, start:stop]
        logits, cache = step(model, part, np.arange(start, stop)[None], cache)
        with torch.no_grad():
            expected = original(
                input_ids=torch.tensor(part), past_key_values=theirs, use_cache=True
            )
        theirs = expected.past_key_values
        assert relative_l2(logits, expected.logits) <= TOLERANCE, start


def test_rows_of_a_batch_use_frequencies_of_their_own_lengths(case):
    """One row below the limit, right-padded, and one beyond it: each equals transformers alone."""
    limit, original, model = case
    tokens = tokens_of(original, batch_size=2)[:, : limit + 9]
    lengths = [limit - 9, limit + 9]
    positions = np.stack(
        [np.where(np.arange(limit + 9) < n, np.arange(limit + 9), -1) for n in lengths]
    )
    logits, _ = step(model, tokens, positions, model.init_cache(2, limit + 9))
    for row, length in enumerate(lengths):
        alone = torch.tensor(tokens[row : row + 1, :length])
        with torch.no_grad():
            expected = original(input_ids=alone, use_cache=False).logits
        assert relative_l2(logits[row : row + 1, :length], expected) <= TOLERANCE
