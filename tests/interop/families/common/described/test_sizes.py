"""Sizes are read under a family's own names, with its defaults, and written back."""

import pytest
from tiny import TINY

from jaxllm.config import make_config, with_fields
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.fields import Fields

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 56,
    "max_position_embeddings": 512,
    "initializer_range": 0.01,
}
SHORT = {"hidden_size": "width", "intermediate_size": "", "max_position_embeddings": ""}
NARROW = {"has_head_dim": False, "has_kv_heads": False, "has_mlp_dim": False}


def read(part, given):
    fields = Fields(given)
    values = part.read(fields)
    assert not fields.finish()
    return values


def test_llama_s_names_go_both_ways():
    part = sizes(2048)
    values = read(part, LLAMA)
    assert part.write(make_config(values), {}) == LLAMA
    assert values["num_kv_heads"], values["head_dim"] == (2, 16)


@pytest.mark.parametrize(
    ("defaults", "absent", "expected"),
    [
        ({}, "num_key_value_heads", {"num_kv_heads": 6}),
        ({"kv_heads": 3}, "num_key_value_heads", {"num_kv_heads": 3}),
        ({}, "head_dim", {"head_dim": 8}),
        ({"head_dim": 24}, "head_dim", {"head_dim": 24}),
        ({}, "max_position_embeddings", {"max_len": 2048}),
        ({"has_mlp_dim": False}, "intermediate_size", {"mlp_dim": 192}),
    ],
)
def test_what_is_absent_has_the_family_s_default(defaults, absent, expected):
    given = {name: value for name, value in LLAMA.items() if name != absent}
    assert expected.items() <= read(sizes(2048, **defaults), given).items()


@pytest.mark.parametrize("name", ["num_key_value_heads", "head_dim"])
def test_null_means_what_follows_from_other_sizes(name):
    found = read(sizes(2048, kv_heads=3, head_dim=24), {**LLAMA, name: None})
    assert found[{"num_key_value_heads": "num_kv_heads", "head_dim": "head_dim"}[name]] in (6, 8)


def test_own_names_and_absent_fields():
    part = sizes(64, names=SHORT, old_width="n_embed", **NARROW)
    given = {"vocab_size": 96, "width": 48, "num_hidden_layers": 4, "num_attention_heads": 6}
    values = read(part, given)
    assert (values["mlp_dim"], values["max_len"], values["head_dim"]) == (192, 64, 8)
    written = part.write(make_config(values), {})
    assert written == {**given, "initializer_range": 0.02}
    old = read(part, {**given, "width": 60, "n_embed": 48})
    assert old == values
    assert part.write(make_config(values), {"n_embed": 60})["n_embed"] == 48


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        (sizes(64, has_head_dim=False), {"head_dim": 12}, "head_dim=12 other than"),
        (sizes(64, names=SHORT), {"mlp_dim": 7}, "mlp_dim=7 other than 4 * embed_dim"),
        (sizes(64, is_multi_head=True), {"num_kv_heads": 1}, "num_kv_heads=1 with num_heads="),
    ],
)
def test_sizes_that_cannot_be_given_are_refused(part, changes, said):
    flags = part.unsupported(with_fields(TINY, changes))
    assert any(text.startswith(said) for text, is_present in flags.items() if is_present)


def test_a_width_of_heads_that_is_not_derived_is_a_problem():
    fields = Fields({**LLAMA, "head_dim": 16})
    sizes(64, has_head_dim=False).read(fields)
    assert fields.problems == ["head_dim=16 is not supported, only None or 8"]
