"""Equivalent evaluations differ from the reference by rounding and do not change it."""

import numpy as np
import pytest
import torch

from jaxllm.interop.parity.execution.noise_floor import EQUIVALENT_EVALUATIONS, perturbed_weights


def test_weights_are_perturbed_in_their_last_bits_and_restored(make_llama):
    llama = make_llama(num_hidden_layers=1)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    moved = []
    for seed in range(2):
        with perturbed_weights(llama, seed):
            moved.append({name: tensor.clone() for name, tensor in llama.state_dict().items()})
    for name, tensor in llama.state_dict().items():
        assert torch.equal(tensor, before[name])
        for others in moved:
            apart = np.abs(others[name].numpy() - tensor.numpy()) / np.spacing(
                np.abs(tensor.numpy())
            )
            assert apart.max() <= 32
            assert apart.mean() > 2
        assert not torch.equal(moved[0][name], moved[1][name])


@pytest.mark.parametrize("equivalent", EQUIVALENT_EVALUATIONS)
def test_equivalent_evaluations_differ_by_rounding_only(equivalent, make_llama, tokens):
    llama, given = make_llama(num_hidden_layers=1).eval(), torch.as_tensor(tokens[:1, :32])
    with torch.no_grad():
        plain = llama(given).logits
        with equivalent(llama):
            other = llama(given).logits
        again = llama(given).logits
    apart = float((other - plain).norm() / plain.norm())
    assert 1e-9 < apart < 1e-5
    assert torch.equal(again, plain)
