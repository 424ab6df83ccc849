"""Training in PyTorch: gradients against autograd, updates against hand computation."""

import chex
import numpy as np
import pytest
import torch
from torch.nn import functional

from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.execution.torch_train import (
    mean_loss,
    perturbed_weights,
    train_reference,
)

RECIPE = Recipe(steps=2)
DECAYS = {"model.embed_tokens.weight"}


@pytest.fixture(scope="module")
def llama(make_llama):
    return make_llama(num_hidden_layers=1, tie_word_embeddings=True).eval()


@pytest.fixture(scope="module")
def run(llama, tokens):
    batches = [Inputs(tokens[:1, start : start + 12]) for start in (0, 20)]
    return train_reference(llama, batches, RECIPE, DECAYS)


def test_the_gradient_equals_autograds(llama, run, tokens):
    row = torch.as_tensor(tokens[:1, :12])
    loss = functional.cross_entropy(llama(row).logits[0, :-1], row[0, 1:])
    wanted = torch.autograd.grad(loss, llama.model.norm.weight)[0].numpy()
    assert run.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    found = run.first["gradient"]["model.norm.weight"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_the_first_update_is_the_gradients_sign_plus_weight_decay(llama, run):
    name = "model.embed_tokens.weight"
    gradient, before = run.first["gradient"][name], run.first["parameter"][name]
    large = np.abs(gradient) > 1e-4
    wanted = -RECIPE.learning_rate * (np.sign(gradient) + RECIPE.weight_decay * before)
    np.testing.assert_allclose(run.first["update"][name][large], wanted[large], rtol=1e-2)


def test_a_tied_parameter_is_returned_under_both_names(run):
    for arrays in run.first.values():
        chex.assert_trees_all_equal(arrays["lm_head.weight"], arrays["model.embed_tokens.weight"])


def test_training_does_not_change_the_reference(llama, run, make_llama):
    other = make_llama(num_hidden_layers=1, tie_word_embeddings=True).state_dict()
    assert len(run.losses) == 2
    assert all(torch.equal(other[name], x) for name, x in llama.state_dict().items())
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_padding_is_not_predicted(llama, tokens):
    mask = np.array([[1] * 8 + [0] * 4])
    inputs = Inputs(tokens[:1, :12], target_mask=mask)
    found = mean_loss(llama, {}, inputs).item()
    assert found == pytest.approx(mean_loss(llama, {}, Inputs(tokens[:1, :8])).item(), rel=1e-5)


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
