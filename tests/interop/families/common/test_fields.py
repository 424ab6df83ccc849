"""Config files are read field by field, and all problems are collected."""

import pytest

from jaxllm.interop.families.common.config_fields import ReadFields
from jaxllm.interop.families.common.fields import Fields


def test_fields_are_taken_or_default():
    fields = Fields({"width": 8, "eps": 1, "bias": None, "name": "x"})
    assert fields.take("width", int) == 8
    assert fields.take("eps", float) == 1.0
    assert fields.take("bias", bool, True) is True
    assert fields.take("depth", int, 3) == 3
    assert fields.take_nullable("bias", bool, True) is None
    fields.ignore("name")
    assert fields.finish() == []
    assert fields.uses() == {"width": "read", "eps": "read", "bias": "read", "name": "ignored"}


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        ({}, int, "depth is missing"),
        ({"depth": None}, int, "depth is missing"),
        ({"depth": "3"}, int, "depth='3' is not of type int"),
        ({"depth": True}, int, "depth=True is not of type int"),
        ({"depth": 2**31}, int, "depth=2147483648 exceeds the limit of 2,147,483,647"),
        ({"depth": 1e39}, float, "depth=1e+39 is not a finite float32"),
        ({"depth": float("nan")}, float, "depth=nan is not a finite float32"),
    ],
)
def test_wrong_values_are_reported_and_reading_continues(data, kind, said):
    fields = Fields(data)
    assert fields.take("depth", kind) == kind()
    assert fields.problems == [said]
    assert not fields.is_complete


def test_layer_and_expert_counts_are_limited():
    fields = Fields({"num_layers": 10_001})
    fields.take("num_layers", int)
    assert fields.problems == ["num_layers=10001 exceeds the limit of 10,000"]


def test_unknown_fields_suggest_the_nearest_known_one():
    fields = Fields({"widht": 8})
    fields.take("width", int, 4)
    assert fields.unknown() == {
        "widht": "widht=8 is not a field known to this family; did you mean 'width'?"
    }


def test_values_that_are_not_implemented_are_refused():
    fields = Fields({"act": "relu", "tie": False})
    fields.require("act", "silu", "swish")
    fields.require("tie", False)
    fields.require("absent", 1)
    assert fields.problems == ["act='relu' is not supported, only 'silu' or 'swish'"]


def test_problems_of_a_part_are_reported_with_its_name():
    fields = Fields({"rope": {"theta": "x", "factro": 2}})
    with fields.part("rope") as rope:
        rope.take("theta", float)
        rope.take("factor", float, 1.0)
    assert fields.problems == ["rope: theta='x' is not of type float"]
    ((name, message),) = fields.unknown().items()
    assert message.startswith("rope: factro=2 is not a field")
    assert name == "rope.factro"
    assert not fields.is_complete


def test_a_field_that_the_original_does_not_read_is_not_used():
    reads = ReadFields({"width": [4], "causal": [True], "mask": []}, aliases={"wide": "width"})
    fields = Fields({"causal": True, "masc": 1, "mask": 1, "_mask": 2, "wide": 5}, reads)
    assert fields.take("width", int) == 5
    fields.take("mask", int)
    assert fields.unused() == {"causal": "", "masc": "", "_mask": ""}
    assert fields.uses()["wide"] == "read"
    fields = Fields({"causal": False, "width_": 4}, reads)
    fields.take("width", int, 1)
    assert fields.unused() == {"width_": "; did you mean 'width'?"}
    assert fields.finish() == ["causal=False is not implemented, and transformers reads it"]


def test_a_field_that_is_absent_may_be_there_under_a_similar_name():
    reads = ReadFields({"rms_norm_eps": []}, aliases={"boi_token_id": "boi_token"})
    given = {"rms_norm_epsilon": 1e-5, "boi_token_index": 3}
    for present, hint in (({}, "; did you mean 'rms_norm_eps'?"), ({"rms_norm_eps": 1e-6}, "")):
        fields = Fields(given | present, reads)
        fields.take("rms_norm_eps", float, 1e-6)
        assert fields.unused() == {"rms_norm_epsilon": hint, "boi_token_index": ""}


def test_a_refused_field_says_what_it_may_be():
    fields = Fields({"act": "mish", "part": {"scale": 2, "bias": True}})
    fields.require("act", "silu", "swish")
    with fields.part("part") as part:
        part.require("scale", None, 1)
        part.require("bias", False)
    assert fields.refused == {"act": "silu", "part.scale": None, "part.bias": False}


def test_a_nested_object_has_the_defaults_of_its_class():
    reads = ReadFields({"width": [4], "depth": [None]})
    fields = Fields({"part": {}})
    with fields.part("part", reads) as part:
        assert part.take("width", int) == 4
        part.take("depth", int)
    assert fields.problems == ["part: depth is missing"]
    fields = Fields({}, reads)
    fields.take("width", int)
    assert fields.problems == ["width is missing"]
    assert fields.default("width") == 4


def test_a_missing_field_may_be_misspelled():
    fields = Fields({"num_atention_heads": 6})
    fields.take("num_attention_heads", int)
    assert fields.problems == [
        "num_attention_heads is missing; is 'num_atention_heads' a misspelling of it?"
    ]
