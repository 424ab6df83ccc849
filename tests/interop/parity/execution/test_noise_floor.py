"""What training may do by chance is measured, and excuses no more than that."""

import numpy as np
import torch

from jaxllm.interop.parity.execution.noise_floor import moved_weights
from jaxllm.interop.parity.execution.recipe import Training
from jaxllm.interop.parity.levels.training import Runs, judge_curve


def test_weights_are_off_by_their_last_bits_and_then_as_before(make_llama):
    llama = make_llama(num_hidden_layers=1)
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    moved = []
    for seed in range(2):
        with moved_weights(llama, seed):
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


def curve(ours, *moved):
    """Which steps of a curve hold, beside losses of one."""
    run = [Training(tuple(losses), 1.0, {}) for losses in (ours, [1.0] * len(ours))]
    return [row.ok for row in judge_curve(Runs(*run, run[1:], moved))]


def test_what_moved_weights_do_excuses_that_step_and_those_after_it():
    ours = [1 + 3e-6] * 4
    assert curve(ours) == [False] * 4
    assert curve(ours, [1.0, 1.0, 1 + 1e-6, 1.0]) == [False, False, True, True]
    assert curve(ours, [1.0] * 4, [1.0, 1 + 1e-6, 1.0, 1.0]) == [False, True, True, True]


def test_nothing_excuses_more_than_a_ten_thousandth():
    assert curve([1.0, 1 + 2e-4], [1.0, 1.1]) == [True, False]
    assert curve([1.0, 1 + 9e-5], [1.0, 1.1]) == [True, True]
