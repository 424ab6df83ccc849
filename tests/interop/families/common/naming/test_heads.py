"""Whether a checkpoint has a head is told by its config and its names."""

import pytest

from jaxllm.interop.families.common.naming.heads import (
    architecture_without_head,
    is_head,
    is_without_head,
    lacks_head,
    restore_head_fields,
    without_head,
)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaModel", True),
        ("T5EncoderModel", True),
        ("LlamaForSequenceClassification", True),
        ("GPT2ForTokenClassification", True),
        ("BartForQuestionAnswering", True),
        ("LlamaForCausalLM", False),
        ("GPT2LMHeadModel", False),
        ("GPT2DoubleHeadsModel", False),
        ("T5ForConditionalGeneration", False),
        ("MyOwn", False),
    ],
)
def test_architectures_tell(architecture, expected):
    assert is_without_head([architecture]) is expected
    assert is_without_head([architecture, "Another"]) is expected


def test_no_architecture_tells_nothing():
    assert not any(map(is_without_head, (None, [], "LlamaModel", [None], {"a": 1})))


@pytest.mark.parametrize(
    ("architectures", "names", "tied", "bare", "expected"),
    [
        (["LlamaModel"], ["x"], True, True, True),
        (["LlamaModel"], ["x", "lm_head.weight"], True, False, False),
        (["LlamaForCausalLM"], ["x"], False, True, True),
        (["LlamaForCausalLM"], ["x"], False, False, False),  # a head is missing: an error
        (["LlamaForCausalLM"], ["x"], True, True, False),
        (["My"], ["x", "score.weight"], False, False, True),
        (["My"], ["x", "v_head.summary.weight"], True, False, False),
    ],
)
def test_names_tell_what_the_architecture_does_not(architectures, names, tied, bare, expected):
    assert lacks_head(architectures, names, tied=tied, bare=bare) is expected


def test_heads_are_told_by_whole_names():
    assert all(map(is_head, ("lm_head.weight", "score.weight", "v_head.summary.bias")))
    assert not any(map(is_head, ("model.score.weight", "scores.weight", "layers.0.w")))


def test_a_model_without_its_head_keeps_all_other_values():
    one = {"embed_dim": 8, "head.tied": True, "head.softcap": 3.0}
    assert without_head(one) == {"embed_dim": 8, "head.kind": "none"}
    both = {"encoder": {"num_layers": 2}, "decoder": one, "start_token": 0}
    assert without_head(both) == {**both, "decoder": {"embed_dim": 8, "head.kind": "none"}}


def test_a_written_config_says_of_the_head_what_the_original_did():
    written = {"a": 1, "tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    base = {"tie_word_embeddings": False, "architectures": ["LlamaForSequenceClassification"]}
    kept = restore_head_fields({**written, "architectures": base["architectures"]}, base, ["X"])
    assert kept == {"a": 1, **base}
    assert restore_head_fields(written, {}, ["LlamaModel"])["architectures"] == ["LlamaModel"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("LlamaForCausalLM", "LlamaModel"),
        ("GPT2LMHeadModel", "GPT2Model"),
        ("T5ForConditionalGeneration", "T5Model"),
        ("T5EncoderModel", "T5EncoderModel"),
    ],
)
def test_the_class_without_the_head_has_its_own_name(given, expected):
    assert architecture_without_head(given) == expected
