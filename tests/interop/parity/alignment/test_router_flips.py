"""Router flips: tokens sent to other experts, by a bug or by noise."""

import numpy as np
import pytest

from jaxllm.interop.parity.alignment.router_flips import flips


def test_rerouted_tokens_are_counted():
    reference = {"layers.0.mlp.router": np.array([[[3.0, 2.0, 1.0], [1.0, 2.0, 1.999]]])}
    ours = {"layers.0.mlp.router": np.array([[[3.0, 2.0, 1.0], [1.0, 1.99, 2.0]]])}
    path = "layers.0.mlp.router"
    [found] = flips(ours, reference, {path: [reference[path]]}, {path: 1e-6}, top_k=1)
    assert (found.path, found.tokens, found.by_noise) == (path, 1, 0)
    assert found.margin == pytest.approx(0.001)
    assert not found.is_tie
    [found] = flips(ours, reference, {path: [reference[path]]}, {path: 0.001}, top_k=1)
    assert found.is_tie
    assert flips(ours, reference, {path: [reference[path]]}, {path: 1e-6}, top_k=2) == []
    [found] = flips(reference, reference, {path: [ours[path]]}, {path: 1e-6}, top_k=1)
    assert (found.tokens, found.by_noise) == (0, 1)
