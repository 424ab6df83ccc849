"""RoPE configs are read as transformers reads them, and written so that they read the same."""

import json

import numpy as np
import pytest
import torch
from hf_cases import longrope, rope
from transformers import Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Phi3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from jaxllm.config import DecoderConfig, LayerKind, make_config
from jaxllm.interop.families import FAMILIES
from jaxllm.layers.attention.rope import Rotation

BY_NAME = {family.name: family for family in FAMILIES}
SIZES = {
    "vocab_size": 96,
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 512,
}
MODULES = {
    "llama": (LlamaConfig, LlamaRotaryEmbedding),
    "phi3": (Phi3Config, Phi3RotaryEmbedding),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXRotaryEmbedding),
}
SHORT, LONG = (longrope(1, 8)["rope_parameters"][f"{name}_factor"] for name in ("short", "long"))
YARN = {"type": "yarn", "factor": 4.0}

CASES = {
    "llama-v4": ("llama", {"rope_theta": 5e5}),
    "llama-v4-int": ("llama", {"rope_theta": 500000}),
    "llama-v5": ("llama", rope("default")),
    "linear-v4-type": ("llama", {"rope_scaling": {"type": "linear", "factor": 3}}),
    "dynamic-v4": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.5}}),
    "dynamic-v5": ("llama", rope("dynamic", factor=2.5)),
    "yarn-v4": ("llama", {"rope_theta": 1e6, "rope_scaling": YARN}),
    "yarn-original": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=77)),
    "yarn-original-above": (
        "llama",
        {"rope_scaling": YARN, "original_max_position_embeddings": 128},
    ),
    "yarn-of-another-code": ("llama", rope("yarn", factor=4.0, finetuned=True)),
    "linear-with-more": ("llama", rope("linear", factor=4.0, beta_fast=3.0)),
    "dynamic-original": ("llama", rope("dynamic", factor=4.0, original_max_position_embeddings=64)),
    "longrope-two-originals": (
        "llama",
        {**longrope(64, 8), "original_max_position_embeddings": 65},
    ),
    "partial-but-default": ("llama", rope("default", partial_rotary_factor=0.5)),
    "outer-partial-but-default": ("llama", {"partial_rotary_factor": 0.5}),
    "yarn-null-factor": (
        "llama",
        rope("yarn", factor=None, original_max_position_embeddings=64, beta_fast=None),
    ),
    "yarn-mscale": ("llama", rope("yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.707)),
    "yarn-mscale-alone": ("llama", rope("yarn", factor=40.0, mscale=0.5)),
    "yarn-mscale-zero": ("llama", rope("yarn", factor=40.0, mscale=0.5, mscale_all_dim=0)),
    "yarn-betas": ("llama", rope("yarn", factor=4.0, beta_fast=16, beta_slow=2, truncate=False)),
    "yarn-given": ("llama", rope("yarn", factor=4.0, attention_factor=1.5, mscale=2.0)),
    "llama3-no-original": (
        "llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "longrope-ratio": ("llama", longrope(64, 8)),
    "longrope-factor": ("llama", longrope(64, 8, factor=3.0)),
    "longrope-given": ("llama", longrope(64, 8, attention_factor=1.25)),
    "longrope-shrinks": ("llama", longrope(1000, 8)),
    "phi3-v4": (
        "phi3",
        {
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
            "original_max_position_embeddings": 64,
        },
    ),
    "phi3-su": (
        "phi3",
        {
            "rope_scaling": {
                "type": "su",
                "short_factor": SHORT,
                "long_factor": LONG,
                "original_max_position_embeddings": 64,  # transformers 5 ignores it one level up
            },
            "original_max_position_embeddings": 64,
        },
    ),
    "phi3-default-original": (
        "phi3",
        {
            "max_position_embeddings": 16384,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
    ),
    "phi3-partial-v4": (
        "phi3",
        {
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 128,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": SHORT[:6],
                "long_factor": LONG[:6],
            },
        },
    ),
    "phi3-partial-v5": ("phi3", rope("default", partial_rotary_factor=0.5)),
    "gpt_neox-default": ("gpt_neox", {}),
    "gpt_neox-v4": ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 25000}),
    "gpt_neox-v4-late": (
        "gpt_neox",
        {
            "rotary_pct": 0.5,
            "rotary_emb_base": 25000,
            "partial_rotary_factor": 0.5,
            "rope_theta": 25000,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
    ),
    "gpt_neox-v5": ("gpt_neox", rope("dynamic", factor=4.0, partial_rotary_factor=1.0)),
}


def config_json(family: str, fields: dict) -> dict:
    sizes = dict(SIZES)
    if family == "gpt_neox":
        del sizes["num_key_value_heads"]
    return json.loads(json.dumps({"model_type": family, **sizes, **fields}))


def read(data: dict) -> DecoderConfig:
    fields = BY_NAME[data["model_type"]].fields(json.loads(json.dumps(data)))
    values, _ = BY_NAME[data["model_type"]].read_config(fields, {})
    assert fields.finish() == []
    return make_config(values)


def problems(data: dict) -> str:
    fields = BY_NAME[data["model_type"]].fields(data)
    BY_NAME[data["model_type"]].read_config(fields, {})
    return "; ".join(fields.finish())


def angles(config: DecoderConfig, kind: LayerKind, length: int) -> tuple[np.ndarray, float]:
    """Returns transformers' rotation of each pair per position, in a sequence of this length."""
    rotation = Rotation.from_config(config, kind)
    turned = np.asarray(rotation.angles(np.array([[1, length - 1]])))[0, 0, 0]
    return turned, rotation.attention_factor


def their_angles(data: dict, length: int) -> tuple[np.ndarray, float]:
    config_class, module_class = MODULES[data["model_type"]]
    module = module_class(config_class(**json.loads(json.dumps(data))))
    module(torch.zeros(()), torch.tensor([[1, length - 1]]))  # sets the frequencies for this length
    return module.inv_freq.numpy(), module.attention_scaling


def assert_the_same(data: dict, config: DecoderConfig) -> None:
    for length in (50, 300, 700, 5000):
        ours, our_factor = angles(config, LayerKind(), length)
        theirs, their_factor = their_angles(data, length)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert our_factor == their_factor


@pytest.mark.parametrize("case", CASES)
def test_rope_is_read_as_transformers_reads_it(case):
    data = config_json(*CASES[case])
    assert_the_same(data, read(data))


@pytest.mark.parametrize("case", CASES)
def test_written_rope_reads_the_same(case):
    """Written both over the original fields and without them."""
    family, fields = CASES[case]
    data = config_json(family, fields)
    config = read(data)
    for base in (data, {}):
        written = BY_NAME[family].write_config(config, base)
        assert "rope_parameters" not in written
        assert_the_same(written, config)
        assert read(written) == config


GEMMAS = {
    "default": {},
    "v4": {
        "rope_theta": 2e5,
        "rope_local_base_freq": 7000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "v5": {
        "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "factor": 8.0, "rope_theta": 2e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
        }
    },
    "v4-truncate": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
    "v5-full-only": {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
    "v5-local-null": {
        "rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": None}
    },
}


@pytest.mark.parametrize("case", GEMMAS)
def test_rope_is_read_for_each_layer_type(case):
    data = config_json("gemma3_text", GEMMAS[case])
    config = read(data)
    for written in (data, BY_NAME["gemma3_text"].write_config(config, data)):
        assert read(written) == config
        module = Gemma3RotaryEmbedding(Gemma3TextConfig(**json.loads(json.dumps(written))))
        for kind, name in (
            (LayerKind(), "full_attention"),
            (LayerKind(attention="window", rope="local"), "sliding_attention"),
        ):
            ours, factor = angles(config, kind, 300)
            theirs = getattr(module, f"{name}_inv_freq").numpy()
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            assert factor == getattr(module, f"{name}_attention_scaling")


@pytest.mark.parametrize(
    ("family", "fields", "complaint"),
    [
        ("llama", rope("proportional"), "rope_type='proportional' is not supported"),
        (
            "llama",
            rope("linear", factor=4.0, partial_rotary_factor=0.5),
            "rope_parameters: partial_rotary_factor=0.5 is not implemented",
        ),
        (
            "llama",
            {**rope("linear", factor=4.0), "partial_rotary_factor": 0.5},
            "partial_rotary_factor=0.5 is not supported",
        ),
        ("llama", rope("longrope", short_factor=[1.0]), "long_factor is missing"),
        (
            "llama",
            rope("longrope", short_factor=[1.0], long_factor=["x"]),
            "'x', which is not a number",
        ),
        ("phi3", rope("linear", factor=4.0), "linear RoPE scaling is not supported"),
        ("gpt_neox", {"rotary_emb_base": 1e4, "rope_theta": 2e4}, "rope_theta=20000.0"),
        ("gpt_neox", {"rotary_pct": 0.5, "partial_rotary_factor": 0.25}, "0.25 is not supported"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_type='linear'",
        ),
        ("gemma3_text", rope("default"), "rope_theta=20000.0 is not a field"),
    ],
    ids=str,
)
def test_unsupported_rope_is_refused(family, fields, complaint):
    assert complaint in problems(config_json(family, fields))


def test_rope_that_the_format_does_not_support_is_not_written():
    dynamic = read(config_json("llama", rope("dynamic", factor=4.0)))
    shorter = {**vars(dynamic), "max_len": 1024}
    with pytest.raises(ValueError, match=r"original_max_len=512, only with max_len=1024"):
        BY_NAME["llama"].write_config(DecoderConfig(**shorter), {})
    with pytest.raises(ValueError, match="RoPE scaling other than longrope"):
        BY_NAME["phi3"].write_config(dynamic, {})
