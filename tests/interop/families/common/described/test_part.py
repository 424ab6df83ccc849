"""Each kind of part reads what it writes, and refuses what it cannot express."""

import pytest
from tiny import TINY

from jaxllm.config import with_fields
from jaxllm.interop.families.common.described.part import (
    activation,
    choice,
    fixed,
    required,
    setting,
    switch,
)
from jaxllm.interop.families.common.fields import Fields

PLACES = {False: "pre", True: "parallel_shared"}


@pytest.mark.parametrize(
    ("part", "given", "ours"),
    [
        (setting("eps", "norms.eps", float, 1e-6), {"eps": 1e-3}, {"norms.eps": 1e-3}),
        (setting("eps", "norms.eps", float, 1e-6), {}, {"norms.eps": 1e-6}),
        (switch("biases", ("attention.qkv_bias", "mlp.bias"), True), {"biases": False}, None),
        (switch("biases", ("attention.qkv_bias", "mlp.bias"), True), {}, None),
        (choice("alone", "norms.placement", PLACES, False), {"alone": True}, None),
        (choice("alone", "norms.placement", PLACES, False), {}, {"norms.placement": "pre"}),
        (activation("act", "relu"), {"act": "gelu_new"}, {"mlp.activation": "gelu_tanh"}),
    ],
)
def test_what_is_read_is_written(part, given, ours):
    fields = Fields(dict(given))
    values = part.read(fields)
    assert not fields.finish()
    assert ours is None or values == ours
    assert {*values} == {*part.supports}
    config = with_fields(TINY, values)
    assert not any(part.unsupported(config).values())
    written = part.write(config, given)
    assert given.items() <= written.items()
    assert part.read(Fields(written)) == values


def test_null_is_a_value_only_where_it_may_be():
    nullable = setting("cap", "attention.softcap", float, 50.0, is_nullable=True)
    assert nullable.read(Fields({"cap": None})) == {"attention.softcap": None}
    plain = setting("cap", "attention.softcap", float, 50.0)
    assert plain.read(Fields({"cap": None})) == {"attention.softcap": 50.0}


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        (fixed({"norms.kind": "layer"}), {}, "norms.kind='rms'"),
        (
            switch("biases", ("attention.qkv_bias", "mlp.bias"), True),
            {"mlp.bias": True},
            "some but not all of attention.qkv_bias, mlp.bias",
        ),
        (
            choice("alone", "norms.placement", PLACES, False),
            {"norms.placement": "post"},
            "norms.placement='post'",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(part, changes, said):
    flags = part.unsupported(with_fields(TINY, changes))
    assert [text for text, is_present in flags.items() if is_present] == [said]


@pytest.mark.parametrize(
    ("part", "given", "said"),
    [
        (required("clip", None, 0), {"clip": 8}, "clip=8 is not supported, only None or 0"),
        (
            choice("place", "norms.placement", {"a": "pre", "b": "post"}, "a"),
            {"place": "c"},
            "place='c' is not supported, only 'a' or 'b'",
        ),
    ],
)
def test_other_values_of_a_file_are_problems(part, given, said):
    fields = Fields(given)
    part.read(fields)
    assert fields.finish() == [said]
