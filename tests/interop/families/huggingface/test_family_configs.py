"""Configs of families: defaults, alternative fields and unsupported values."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_cases import CASES, stored, tokens_of
from tiny import TINY, relative_l2

from jaxllm.config import DecoderConfig, ExpertsConfig, LayerKind, make_config, with_fields
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.params import named_parameters

BY_NAME = {family.name: family for family in FAMILIES}
# Required fields of every config; num_heads is a multiple of all default numbers of KV heads.
BARE = {
    "vocab_size": 96,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "intermediate_size": 56,
}
PREFIXES = {
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "olmo2": "Olmo2",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "smollm3": "SmolLM3",
}
EXPERTS = ExpertsConfig(num_experts=5, top_k=2, mlp_dim=24, normalize=True)
SPARSE = {"experts": EXPERTS, "pattern": (LayerKind(mlp="experts"),)}
WINDOWED, NOPE = LayerKind(attention="window"), LayerKind(rope="none")


def read(family: str, **fields: object) -> DecoderConfig:
    """Reads a config file that holds little more than the sizes."""
    given = BY_NAME[family].fields({"model_type": family, **BARE, **fields})
    values, _ = BY_NAME[family].read_config(given, {})
    assert given.finish() == []
    return make_config(values)


def problems(family: str, **fields: object) -> str:
    given = BY_NAME[family].fields({"model_type": family, **BARE, **fields})
    BY_NAME[family].read_config(given, {})
    return "; ".join(given.finish())


@pytest.mark.parametrize("family", PREFIXES)
def test_defaults_equal_those_of_transformers(family):
    theirs = getattr(transformers, f"{PREFIXES[family]}Config")(**BARE)
    ours = read(family)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (
        getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    )
    assert ours.max_len == theirs.max_position_embeddings
    assert ours.norms.eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.head.tied == theirs.tie_word_embeddings
    assert ours.attention.window == getattr(theirs, "sliding_window", None)
    if ours.experts is not None:
        assert ours.experts.num_experts == theirs.num_local_experts
        assert ours.experts.top_k == theirs.num_experts_per_tok
        assert ours.experts.normalize == getattr(theirs, "norm_topk_prob", True)
        assert ours.experts.aux_weight == 0
        assert not theirs.output_router_logits


@pytest.mark.parametrize(
    ("family", "fields", "window"),
    [
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("mixtral", {"sliding_window": 7}, 7),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, 4096),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 9}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}, None),
        ("qwen2", {"sliding_window": 7, "max_window_layers": 0}, None),
        ("qwen3_moe", {"use_sliding_window": True}, 4096),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": None}, None),
        ("qwen3_moe", {"sliding_window": 7, "max_window_layers": 3}, None),
        ("smollm3", {"sliding_window": 7}, None),
        ("smollm3", {"sliding_window": 7, "use_sliding_window": True}, 7),
    ],
    ids=str,
)
def test_a_null_window_differs_from_a_missing_one(family, fields, window):
    config = read(family, **fields)
    assert config.attention.window == window
    assert any(kind.attention == "window" for kind in config.kinds) == (window is not None)


@pytest.mark.parametrize("family", ["mistral", "mixtral", "olmo2", "qwen2", "smollm3"])
def test_null_num_key_value_heads_means_the_number_of_query_heads(family):
    assert read(family, num_key_value_heads=None).num_kv_heads == BARE["num_attention_heads"]


def test_layers_without_rope_are_read():
    def rotated(**fields: object) -> list[bool]:
        return [kind.rope != "none" for kind in read("smollm3", **fields).kinds]

    assert rotated(num_hidden_layers=6) == [True, True, True, False, True, True]
    assert rotated(no_rope_layer_interval=2) == [True, False] * 2
    assert rotated(no_rope_layers=[0, 1, 1, 0, 0, 0]) == [False, True, True, False]
    assert "no_rope_layers=[1, 0]" in problems("smollm3", no_rope_layers=[1, 0])


def test_layers_with_experts_are_read():
    def sparse(**fields: object) -> list[int]:
        config = read("qwen3_moe", num_hidden_layers=6, **fields)
        return [i for i, kind in enumerate(config.kinds) if kind.mlp == "experts"]

    assert sparse() == [0, 1, 2, 3, 4, 5]
    assert sparse(decoder_sparse_step=3) == [2, 5]
    assert sparse(decoder_sparse_step=2, mlp_only_layers=[1]) == [3, 5]
    assert sparse(mlp_only_layers=list(range(6))) == []
    assert read("qwen3_moe", mlp_only_layers=list(range(4))).experts is None
    assert "decoder_sparse_step=0" in problems("qwen3_moe", decoder_sparse_step=0)


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_number_of_experts_is_read_under_either_name(family, name):
    assert read(family, num_experts_per_tok=1, **{name: 3}).experts.num_experts == 3


def test_two_numbers_of_experts_are_refused():
    both = {"num_experts": 3, "num_local_experts": 4, "num_experts_per_tok": 1}
    assert "num_local_experts=4 and num_experts=3 differ" in problems("qwen3_moe", **both)


def test_the_balancing_loss_counts_if_router_logits_are_requested():
    assert read("mixtral", router_aux_loss_coef=0.5).experts.aux_weight == 0
    experts = read("mixtral", router_aux_loss_coef=0.5, output_router_logits=True).experts
    assert (experts.aux_weight, experts.balance) == (0.5, "model")


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("mixtral", {"layer_types": ["sliding_attention"] * 3}, "layer_types=["),
        ("mixtral", {"num_experts_per_tok": 9}, "top_k=9 is above num_experts=8"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window"),
        ("qwen3_moe", {"layer_types": ["sliding_attention"] * 3}, "layer_types=["),
        ("smollm3", {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window"),
        ("mistral", {"hidden_act": "mish"}, "hidden_act='mish'"),
        ("olmo2", {"sliding_window": 8}, "sliding_window=8"),
    ],
    ids=str,
)
def test_unsupported_values_are_refused(family, fields, words):
    assert words in problems(family, **fields)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", SPARSE, "experts="),
        ("mistral", SPARSE, "mlp='experts'"),
        ("mistral", {"attention.qkv_bias": True}, "attention.qkv_bias=True"),
        (
            "mistral",
            {"attention.window": 9, "pattern": (WINDOWED, LayerKind())},
            "only some layers",
        ),
        ("mistral", {"pattern": (NOPE,)}, "rope='none'"),
        ("mixtral", {}, "experts=None"),
        ("mixtral", {**SPARSE, "pattern": (LayerKind(mlp="experts"), LayerKind())}, "mlp='dense'"),
        (
            "mixtral",
            {**SPARSE, "experts": dataclasses.replace(EXPERTS, normalize=False)},
            "normalize=False",
        ),
        ("mixtral", {**SPARSE, "attention.qk_norm": "head"}, "attention.qk_norm='head'"),
        ("qwen2", {}, "attention.qkv_bias=False"),
        (
            "qwen2",
            {"attention.qkv_bias": True, "attention.out_bias": True},
            "attention.out_bias=True",
        ),
        ("qwen2", {"attention.qkv_bias": True, "pattern": (NOPE, LayerKind())}, "rope='none'"),
        ("qwen3", {"attention.qk_norm": "head", "pattern": (NOPE, LayerKind())}, "rope='none'"),
        ("qwen3", {"attention.qk_norm": "head", **SPARSE}, "experts="),
        ("qwen3_moe", {"attention.qk_norm": "head"}, "experts=None"),
        ("qwen3_moe", SPARSE, "attention.qk_norm='none'"),
        *(
            (
                family,
                {
                    **SPARSE,
                    "attention.qk_norm": "head",
                    "experts": dataclasses.replace(EXPERTS, **change),
                },
                words,
            )
            for family in ("mixtral", "qwen3_moe")
            for change, words in (
                ({"scores": "sigmoid"}, "scores='sigmoid'"),
                ({"scale": "input"}, "scale='input'"),
                ({"shared_mlp_dim": 8}, "shared_mlp_dim=8"),
            )
        ),
        ("smollm3", {"pattern": (LayerKind(rope="local"),)}, "rope='local'"),
        (
            "smollm3",
            {"attention.chunk": 9, "pattern": (LayerKind(attention="chunk"),)},
            "attention='chunk'",
        ),
        ("olmo2", {}, "norms.kind='rms'"),
        (
            "olmo2",
            {"norms.kind": "rms_float32", "attention.qk_norm": "full"},
            "norms.placement='pre'",
        ),
    ],
    ids=str,
)
def test_configs_that_a_family_does_not_support_are_refused(family, changes, words):
    with pytest.raises(ValueError, match=f"does not support .*{words}"):
        BY_NAME[family].write_config(with_fields(TINY, changes), {})


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe/every-other-tied-biases"])
def test_experts_fused_by_transformers_5_are_read_and_written_separately(name, tmp_path):
    original = CASES[name].build()
    original.save_pretrained(tmp_path / "each")
    original.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert not stored(tmp_path / "each").keys() >= stored(tmp_path / "fused").keys()
    each, fused = (load_pretrained(tmp_path / layout) for layout in ("each", "fused"))
    assert fused.config == each.config
    for parameter, variable in named_parameters(each).items():
        found = named_parameters(fused)[parameter].get_value()
        np.testing.assert_array_equal(found, variable.get_value())
    save_pretrained(fused, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "each")


def test_a_missing_expert_is_named(tmp_path):
    CASES["mixtral"].build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_local_experts": 5', '"num_local_experts": 6'))
    with pytest.raises(CheckpointError, match=r"\{0\.\.3\}\.block_sparse_moe\.experts\.5\.w1"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_number_of_experts_is_written_as_in_transformers_4(family, tmp_path):
    CASES[family].build().save_pretrained(tmp_path / "in")
    model = load_pretrained(tmp_path / "in")
    model.origin = None  # whose fields would be kept
    save_pretrained(model, tmp_path / "out", format="hf")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    name, other = "num_local_experts", "num_experts"
    if family == "qwen3_moe":
        name, other = other, name
    assert written[name] == 5
    assert other not in written


@pytest.mark.parametrize("name", ["mixtral/window-tied-all", "qwen3_moe/every-other-tied-biases"])
def test_the_balancing_loss_of_the_model_equals_transformers(name, tmp_path):
    """With padding, over all layers with experts."""
    original = CASES[name].build()
    original.config.output_router_logits = True
    original.config.router_aux_loss_coef = 0.02
    original.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    tokens = tokens_of(original)[:, :50]
    mask = np.arange(50) < np.array([[50], [31]])
    with torch.no_grad():
        expected = original(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask, dtype=torch.int32),
            output_router_logits=True,
        ).aux_loss
    found = jax.jit(model)(tokens, segment_ids=mask.astype(int)).aux_loss
    assert relative_l2(found, 0.02 * expected.numpy()) <= 1e-6
