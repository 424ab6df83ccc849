"""Rules for PyTorch modules transpose kernels and name both sides."""

from jaxllm.interop.families.common.torch_modules import attention_rules, linear_rules


def sides(rules):
    return [(rule.stored.text, rule.model.text) for rule in rules]


def test_linear_weights_are_transposed():
    assert sides(linear_rules("fc", "mlp.up_proj", "F", "D", bias=True)) == [
        ("fc.weight : F D", "mlp.up_proj.kernel : D F"),
        ("fc.bias : F", "mlp.up_proj.bias : F"),
    ]
    assert len(linear_rules("fc", "up", "F", "D")) == 1


def test_heads_are_merged_only_in_the_stored_dimension():
    found = sides(attention_rules("att", "attn", ("q", "k", "v", "o")))
    assert found == [
        ("att.q.weight : (N H) D", "attn.q_proj.kernel : D N H"),
        ("att.k.weight : (N H) D", "attn.k_proj.kernel : D N H"),
        ("att.v.weight : (N H) D", "attn.v_proj.kernel : D N H"),
        ("att.o.weight : D (N H)", "attn.o_proj.kernel : N H D"),
    ]
    assert len(attention_rules("att", "attn", ("q", "k", "v", "o"), bias=True)) == 8
