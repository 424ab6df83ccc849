"""RoPE scaling of GGUF files: from fields, and from the factors of each frequency."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxllm.interop.families.gguf.rope_factors import llama3_factors, read_scaling

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}


def tensor(values):
    return SimpleNamespace(read=lambda: np.asarray(values, np.float32))


def read(given, tensors=(), config=()):
    problems = []
    given, tensors = dict(given), dict(tensors)
    found = read_scaling(given, tensors, {"rope_theta": 500_000.0, **dict(config)}, problems)
    assert not tensors
    assert not any("rope.scal" in name for name in given)
    return found, problems


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"rope.scaling.type": "none", "rope.scaling.finetuned": True}, {}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, {}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        ({"rope.scaling.factor": 2.0}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"rope.scale_linear": 4.0}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 4096,
            },
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 4096,
                }
            },
        ),
    ],
)
def test_fields_become_those_of_config_json(given, expected):
    assert read(given) == (expected, [])


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_llama3_are_recognized(factor):
    factors = llama3_factors(500_000.0, 64, factor)
    assert factors[0] == 1
    assert factors[-1] == factor
    assert len(np.unique(factors)) > 3  # some in between
    found, problems = read({}, {"rope_freqs.weight": tensor(factors)})
    assert found == {"rope_scaling": {"rope_type": "llama3", "factor": factor, **LLAMA3}}
    assert not problems


def test_factors_of_llama3_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, **LLAMA3}
    config = transformers.LlamaConfig(head_dim=64, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / scaled.numpy(), llama3_factors(5e5, 64, 8.0), rtol=1e-5)


def test_other_factors_are_refused_and_factors_of_one_are_none():
    found, problems = read({}, {"rope_freqs.weight": tensor([1.0, 2.0, 8.0])})
    assert found == {}
    assert "other factors than those of Llama 3 with factor 8.0" in problems[0]
    assert read({}, {"rope_freqs.weight": tensor(np.ones(32))}) == ({}, [])


def test_long_and_short_factors_are_those_of_longrope():
    tensors = {
        "rope_factors_long.weight": tensor([1.5, 2.0]),
        "rope_factors_short.weight": tensor([1.0, 1.25]),
    }
    given = {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.19}
    found, problems = read(given, tensors)
    rope = {"rope_type": "longrope", "long_factor": [1.5, 2.0], "short_factor": [1.0, 1.25]}
    assert found == {"rope_scaling": rope, "original_max_position_embeddings": 4096}
    assert not problems


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rope.scaling.type": "magic"}, "type='magic' is not supported, only linear and yarn"),
        ({"rope.scaling.power": 3}, "rope.scaling.power=3 is not understood"),
    ],
)
def test_other_scaling_is_named(given, message):
    assert message in read(given)[1][0]
