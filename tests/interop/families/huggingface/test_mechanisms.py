"""Families with mechanisms of their own: every level of parity, generation, and any mesh."""

import jax
import numpy as np
import pytest
import torch
from hf_cases import CASES, tokens_of
from tiers import examples
from tiny import relative_l2

from jaxllm.generation import generate
from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.params import map_parameters, parameter_shardings, split
from jaxllm.train import make_mesh
from jaxllm.train.data.placement import on_mesh
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss

NAMES = (
    *("gpt_oss", "deepseek_v3", "deepseek_v2", "glm4_moe", "minimax_m2", "qwen3_next"),
    "qwen3_5_text",
)
STEEP = ("qwen3_next", "qwen3_5_text")
LENGTHS = (5, 23, 1, 90)  # of prompts; the last is longer than any window
NEW = 12
TOLERANCE = 1e-5  # relative L2, float32


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Returns a function of a case's name: the model of transformers, and ours."""
    found = {}

    def build(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("built")
            original = CASES[name].build()
            original.save_pretrained(folder)
            found[name] = original, load_pretrained(folder)
        return found[name]

    return build


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_every_level_of_parity_passes(built, name):
    original, model = built(name)
    tokens = tokens_of(original)[:, :100]
    report = compare(original, model, tokens, recipe=Recipe(steps=5))
    assert report.ok, report.first_divergence
    assert {*report.rows} >= {"weights", "config", "layers", "gradients", "step", "generate"}


@pytest.mark.parametrize("name", examples(NAMES, *NAMES[:1]))
def test_generation_equals_that_of_transformers_alone_and_in_a_batch(built, name):
    """Prompts of several lengths in one batch, each as transformers continues it alone."""
    original, model = built(name)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 96, length).tolist() for length in LENGTHS]
    expected = [
        original.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert generate(model, prompts, NEW) == expected


def with_other_last_bits(params):
    """Returns parameters that differ by half a unit in the last place or less."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (x * (1 + 6e-8 * rng.choice([-1, 1], x.shape))).astype(x.dtype), params
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "sequence": 2}], ids=str
)
def test_loss_and_gradients_on_a_mesh_equal_those_on_one_device(built, name, mesh):
    _, model = built(name)
    bind, params = split(model)
    rng = np.random.default_rng(0)
    batch = {"tokens": rng.integers(0, 96, (4, 33)), "mask": rng.random((4, 32)) < 0.6}

    def loss(params, batch):
        return next_token_loss(bind(params), batch, LossConfig(chunk_tokens=512))[0]

    on_one = jax.jit(jax.value_and_grad(loss))
    expected = on_one(params, batch)
    # The last bits of weights alone change the gradients of gated DeltaNet here by up to 8e-5.
    noisy = on_one(with_other_last_bits(params), batch) if name in STEEP else expected
    devices = make_mesh(**mesh)
    with jax.set_mesh(devices):
        shardings = parameter_shardings(model, devices)
        places = map_parameters(model, lambda name, _: shardings[name])
        given = jax.device_put(params, places), on_mesh(batch, devices, 4)
        found = jax.jit(jax.value_and_grad(loss))(*given)
    for one, other, near in zip(*map(jax.tree.leaves, (found, expected, noisy)), strict=True):
        if np.any(other):
            assert relative_l2(one, other) <= max(TOLERANCE, 2 * relative_l2(near, other))
        else:  # the bias that corrects the choice of experts gets no gradient
            assert not np.any(one)
