"""A Hugging Face family needs no rules of its own for other prefixes and models without a head."""

import pytest
from tiny import TINY

from jaxllm.config import with_fields
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def test_families_are_named_by_their_model_type():
    family = hf_family("x", lambda fields, tensors: ({}, Layout()), lambda c, j: j, table=None)
    assert (family.name, family.model_type, family.format) == ("x", "x", "hf")
    assert family.config_file == "config.json"
    other = hf_family("x", None, None, None, name="y", auto_class="A")
    assert (other.name, other.model_type, other.auto_class) == ("y", "x", "A")


def names(table) -> set[str]:
    return {rule.stored.name for rule in table.rules}


def test_the_table_has_the_names_of_the_checkpoint():
    tied = with_fields(TINY, {"head.tied": True})
    usual = LLAMA.table(tied, Layout())
    assert usual.tied == {HEAD: EMBEDDING}
    bare = LLAMA.table(tied, Layout(base=""))
    assert names(bare) == {name.removeprefix("model.") for name in names(usual)}
    assert bare.tied == {HEAD: EMBEDDING.removeprefix("model.")}
    inner = LLAMA.table(TINY, Layout(base="language_model.model.", outer="language_model."))
    assert {"language_model.lm_head.weight", f"language_model.{EMBEDDING}"} <= names(inner)


def test_copies_are_written_as_they_came():
    tied = with_fields(TINY, {"head.tied": True})
    both = LLAMA.table(tied, Layout(copies=[HEAD]))
    assert list(both.copies) == [HEAD]
    lone = LLAMA.table(tied, Layout(copies=[HEAD], lone=[EMBEDDING]))
    assert (lone.copies, lone.tied) == ([], {})
    assert HEAD in names(lone)
    assert EMBEDDING not in names(lone)
    _, layout = LLAMA.table_of(tied, Layout(), [HEAD, "model.norm.weight"])
    assert (layout.copies, layout.lone) == ([HEAD], [EMBEDDING])


def test_a_model_without_a_head_has_no_rule_for_one():
    config = with_fields(TINY, {"head.kind": "none"})
    table = LLAMA.table(config, Layout())
    assert HEAD not in names(table)
    assert HEAD not in table.tied
    assert LLAMA.write_config(config, {})["architectures"] == ["LlamaModel"]
    assert (LLAMA.class_of(config), LLAMA.class_of(TINY)) == ("AutoModel", "AutoModelForCausalLM")


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ([EMBEDDING, HEAD], ""),
        (["model." + EMBEDDING, "model." + HEAD], "model."),
        (["model." + EMBEDDING, "model." + HEAD, "v_head.w"], ""),
        (["embed_tokens.weight"], ""),
    ],
)
def test_a_trainers_prefix_is_before_all_names(given, prefix):
    assert LLAMA.trainer_prefix(given) == prefix
