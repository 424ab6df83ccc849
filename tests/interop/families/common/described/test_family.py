"""A described family reads, writes and refuses by its parts, and adds the head to its rules."""

import pytest
from tiny import TINY

from jaxllm.config import make_config, with_fields
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import fixed, setting
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import llama_rules

FAMILY = described_family(
    "llama",
    "LlamaForCausalLM",
    (
        sizes(64),
        setting("eps", "norms.eps", float, 1e-5),
        setting("tied", "head.tied", bool, False),
        fixed({"embed_scale": 1.0}),
    ),
    llama_rules,
    axes=lambda config: {"Z": 3},
)


def test_a_config_goes_both_ways():
    written = FAMILY.write_config(TINY, {"kept": 1, "dtype": "float32"})
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert (written["model_type"], written["kept"]) == ("llama", 1)
    assert "dtype" not in written
    fields = FAMILY.fields(written)
    values, layout = FAMILY.read_config(fields, {})
    assert not fields.problems
    assert make_config(values) == with_fields(TINY, {"rope.theta": 10000.0})
    assert layout == Layout()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"mlp.bias": True}, "mlp.bias=True"), ({"embed_scale": 2.0}, "embed_scale=2.0")],
)
def test_what_no_part_expresses_is_refused(changes, said):
    with pytest.raises(ValueError, match=f"model_type 'llama' does not support .*{said}"):
        FAMILY.write_config(with_fields(TINY, changes), {})


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_a_rule_or_a_copy_of_the_embedding(tied):
    table = FAMILY.table(with_fields(TINY, {"head.tied": tied}), Layout())
    names = {rule.stored.name for rule in table.rules}
    assert ("lm_head.weight" in names) is not tied
    assert table.tied == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
    assert table.sizes["Z"] == 3
