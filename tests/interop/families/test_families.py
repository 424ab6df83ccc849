"""Every Hugging Face family: the same logits as transformers, and there and back the same bits."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_cases import CASES, stored, tokens_of
from tiny import relative_l2

from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.models import with_scanned_layers

TOLERANCE = 1e-5  # relative L2 of logits, float32


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model of transformers, the folder that it saved, and ours of that folder."""
    folder = tmp_path_factory.mktemp("family") / "original"
    original = CASES[request.param].build()
    original.save_pretrained(folder)
    return request.param.partition("/")[0], original, folder, load_pretrained(folder)


# What the tests of layers and caches show in all variants is shown here once for each family.
once_a_family = pytest.mark.parametrize("case", [n for n in CASES if "/" not in n], indirect=True)


@jax.jit
def logits_of(model, tokens):
    return model(tokens).logits


def test_logits_are_those_of_transformers(case):
    _, original, _, model = case
    tokens = tokens_of(original)
    with torch.no_grad():
        expected = original(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
    assert relative_l2(logits_of(model, tokens), expected) <= TOLERANCE


@once_a_family
def test_layers_one_by_one_compute_the_same(case):
    _, original, _, model = case
    tokens = tokens_of(original, batch_size=1)
    listed = with_scanned_layers(model, False)
    assert relative_l2(logits_of(listed, tokens), logits_of(model, tokens)) <= TOLERANCE


def test_there_and_back_no_bit_differs(case, tmp_path):
    family, original, folder, model = case
    assert model.origin.family == family
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(folder)
    again, info = type(original).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name


def test_the_config_comes_back(case, request, tmp_path):
    """What is written means the same to transformers, also without the fields that it came with."""
    _, original, _, model = case
    model.origin = None
    save_pretrained(model, tmp_path / "out", format="hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    written_as = CASES[request.node.callspec.params["case"]].written_as
    assert config.model_type == (written_as or original.config.model_type)
    again = load_pretrained(tmp_path / "out")
    assert again.config == model.config
    tokens = tokens_of(original, batch_size=1)
    with torch.no_grad():
        rebuilt = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", attn_implementation="eager"
        ).eval()
        expected = original(input_ids=torch.tensor(tokens), use_cache=False).logits
        found = rebuilt(input_ids=torch.tensor(tokens), use_cache=False).logits
    if written_as:  # by other code: what one fused product summed, several may sum in other order
        assert relative_l2(found, expected) <= 1e-6
    else:
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


@once_a_family
def test_cached_equals_uncached(case):
    """A prompt and then token by token: every window, chunk and frequency holds in the cache."""
    _, original, _, model = case
    tokens = tokens_of(original)[:, :40]
    whole = logits_of(model, tokens)
    step = jax.jit(
        lambda model, tokens, positions, cache: model(tokens, positions=positions, cache=cache)
    )
    prompt = 5
    out = step(model, tokens[:, :prompt], np.arange(prompt)[None], model.init_cache(2, 40))
    logits = [out.logits]
    for t in range(prompt, 40):
        out = step(model, tokens[:, t : t + 1], np.full((2, 1), t), out.cache)
        logits.append(out.logits)
    assert relative_l2(np.concatenate(logits, axis=1), whole) <= TOLERANCE


def test_both_versions_of_a_config_are_read(case, tmp_path):
    """transformers 5 writes `rope_parameters` and `dtype`; ours is the spelling of 4."""
    _, _, folder, model = case
    save_pretrained(model, tmp_path / "four")
    written = json.loads((tmp_path / "four" / "config.json").read_text())
    assert "rope_parameters" not in written
    assert load_pretrained(tmp_path / "four").config == load_pretrained(Path(folder)).config
