"""The arguments of the components' layers: attention, experts and sizes, read and written."""

import dataclasses
import json
import re

import pytest
from components_family import DENSE, LAYERS, MOE
from source_cases import write_fields
from tiny import random_model

from jaxllm.config import LayerKind, SequenceConfig, make_config, with_fields
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.source_systems.components import (
    num_groups,
    read_layers,
    reference_arguments,
    unsupported,
    write_layers,
)
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.reference.components.attention import get_attention
from jaxllm.interop.reference.components.feed_forward import FFNConfig
from jaxllm.models import with_window

EXPERTS = {**MOE, "capacity": 20, "topk": 2}


def read(**switches: object) -> SequenceConfig:
    fields = Fields({**LAYERS, **switches})
    values = read_layers(fields)
    fields.ignore("input_dim", "output_dim")
    assert fields.finish() == []
    return make_config({**values, "num_layers": 2, "input_dim": 3, "output_dim": 5})


@pytest.mark.parametrize("groups", [None, 1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["mha", "mqa", "gqa"])
def test_heads_of_keys_are_as_many_as_in_the_reference(kind, groups):
    attention = get_attention(kind, 48, 6, groups)
    assert num_groups(kind, 6, groups) == attention.k_proj.out_features // attention.head_dim
    assert read(attention_type=kind, num_groups=groups).num_kv_heads == num_groups(kind, 6, groups)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"attention_type": "mqa"},
        {"attention_type": "gqa"},
        {"attention_type": "gqa", "num_groups": 2},
        {"attention_type": "mqa", "num_groups": 3},
        {"ffn_config": EXPERTS},
    ],
    ids=str,
)
def test_what_is_written_reads_the_same(switches):
    """With the arguments that it came with, which it keeps, and without them."""
    config = read(**switches)
    assert not any(unsupported(config).values())
    for base in (switches, {}):
        written = json.loads(json.dumps(write_layers(config, base)))
        values = read_layers(Fields(written))
        assert with_fields(config, values) == config
    kept = write_layers(config, switches)
    assert {**kept, **switches} == kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": "sigmoid"}, "scores='sigmoid'"),
        ({"scale": "input"}, "scale='input'"),
        ({"balance": "layer"}, "balance='layer'"),
        ({"shared_mlp_dim": 8}, "shared_mlp_dim=8"),
        ({"mlp_dim": 60}, "mlp_dim=60"),
        ({"capacity": None}, "capacity=None"),
        ({"normalize": False}, "normalize=False"),
        ({"router_bias": False}, "router_bias=False"),
    ],
    ids=str,
)
def test_experts_of_another_kind_are_named(changes, words):
    config = read(ffn_config=EXPERTS)
    experts = dataclasses.replace(config.experts, **changes)
    found = unsupported(dataclasses.replace(config, experts=experts))
    [named] = [what for what, is_so in found.items() if is_so]
    assert words in named


def test_the_reference_is_made_of_objects_and_has_no_cache():
    fields = {"model_type": "x", "use_kv_cache": True, "ffn_config": EXPERTS, "num_heads": 6}
    assert reference_arguments(fields) == {
        "use_kv_cache": False,
        "ffn_config": FFNConfig(**EXPERTS),
        "num_heads": 6,
    }


@pytest.mark.parametrize(
    ("switches", "complaint"),
    [
        ({"attention_type": "mla"}, "attention_type='mla' is not supported, only 'mha' or 'mqa'"),
        ({"num_heads": 5}, "embed_dim=48 is not a multiple of num_heads=5"),
        (
            {"attention_type": "gqa", "num_groups": 4},
            "num_heads=6 is not a multiple of num_groups=4",
        ),
        ({"num_groups": 6, "max_seq_len": None}, "max_seq_len is missing"),
        ({"ffn_config": {**DENSE, "latent_dim": 57}}, "latent_dim=57, but the model has 56"),
        ({"ffn_config": {**MOE, "capacity": 3, "topk": 5}}, "top_k=5 is above num_experts=4"),
        ({"ffn_config": {**MOE, "capacity": 0}}, "capacity=0 is less than 1"),
        ({"ffn_config": MOE}, "capacity is missing"),
        ({"use_cache": True}, "did you mean 'use_kv_cache'"),
        ({"ffn_config": {**MOE, "capacity": 3, "top_k": 2}}, "did you mean 'topk'"),
    ],
)
def test_what_cannot_be_is_refused(switches, complaint):
    fields = Fields({**LAYERS, **switches})
    read_layers(fields)
    fields.ignore("input_dim", "output_dim")
    assert any(re.search(complaint, problem) for problem in fields.finish())


def test_what_it_cannot_say_is_refused(tmp_path):
    with pytest.raises(CheckpointError) as error:
        save_pretrained(random_model(), tmp_path / "out", format="components")
    assert "components-regression: this family supports SequenceConfig" in str(error.value)
    fields = {"model_type": "components-autoregressive", **LAYERS, "num_layers": 2}
    write_fields(fields, tmp_path)
    slid = with_window(load_pretrained(tmp_path), 16)
    assert slid.config.pattern == (LayerKind(attention="window"),)
    with pytest.raises(CheckpointError, match=r"autoregressive' .*window=16"):
        save_pretrained(slid, tmp_path / "out")
