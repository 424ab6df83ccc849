"""Export planning: the family, the files and the tensors, before any data is read."""

import dataclasses
import json

import pytest
from tiny import random_model

from jaxllm.checkpoint_origin import Origin
from jaxllm.interop import CheckpointError
from jaxllm.interop.families import Family
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.loading.model_arrays import arrays_of_model
from jaxllm.interop.saving.export import plan_export, possible_families, write_texts


def names(chosen, own=None):
    origin = None if own is None else Origin(family=own, config="{}", layout="{}", directory="x")
    return [family.name for family in possible_families(origin, chosen, None)]


def test_family_of_the_origin_comes_first():
    assert names(None)[0] == "llama"
    assert names(None, own="qwen3")[0] == "qwen3"
    assert names("hf", own="tlama")[0] == "llama"
    assert names(None, own="tlama") == ["tlama"]
    assert names("nima") == ["nima-gpt", "nima-transformer"]
    assert names("native") == []


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (
            "gguf",
            "format='gguf' is not one of hf, meta, tlama, llm, nima, components, native, rules",
        ),
        ("nativ", "did you mean 'native'?"),
        ("bin", "format='bin' is not one of"),
        ("rules", "format='rules' needs the rules of your own model: give rules (--rules)"),
        (5, "format=5 is not one of hf, meta"),
    ],
)
def test_formats_that_cannot_be_written_are_rejected(chosen, expected):
    with pytest.raises(CheckpointError) as error:
        names(chosen)
    assert expected in str(error.value)


@pytest.mark.parametrize("chosen", ["hf", "native", "tlama"])
def test_model_parallel_is_rejected_for_formats_without_shards(chosen):
    with pytest.raises(CheckpointError, match=f"is for format 'meta', not '{chosen}'"):
        possible_families(None, chosen, 2)
    assert possible_families(None, "meta", 2)


@pytest.mark.parametrize("count", [0, -1])
def test_model_parallel_must_be_at_least_one(count):
    with pytest.raises(CheckpointError, match=f"model_parallel={count} is less than 1"):
        possible_families(None, "meta", count)


def test_files_and_texts_are_planned():
    model = arrays_of_model(random_model(head_dim=8))
    families = possible_families(None, "hf", None)
    export = plan_export(model, families, None, 1 << 30)
    assert [file.name for file in export.files] == ["model.safetensors"]
    assert set(export.files[0].places) == set(export.tensors)
    assert list(export.texts) == ["config.json"]
    assert json.loads(export.texts["config.json"])["model_type"] == "llama"
    sharded = plan_export(model, families, None, 20_000)
    assert list(sharded.texts)[-1] == "model.safetensors.index.json"
    assert all(file.size < 30_000 for file in sharded.files)
    shards = plan_export(model, possible_families(None, "meta", 2), 2, 1 << 30)
    assert [file.name for file in shards.files] == ["consolidated.00.pth", "consolidated.01.pth"]


def test_model_that_no_family_can_express_lists_the_reasons():
    changes = {"attention.qk_norm": "head", "mlp.bias": True}
    model = arrays_of_model(random_model(head_dim=8, **changes))
    with pytest.raises(CheckpointError, match="cannot write this model as 'hf'") as error:
        plan_export(model, possible_families(None, "hf", None), None, 1 << 30)
    refusal = "llama: model_type 'llama' does not support"
    assert any(refusal in problem for problem in error.value.problems)


def without_one_rule(family: Family, name: str) -> Family:
    """Returns the family without its rule for the model's array of this name."""

    def table(config, layout):
        whole = family.table(config, layout)
        rules = tuple(rule for rule in whole.rules if rule.model.name != name)
        assert len(rules) == len(whole.rules) - 1
        return dataclasses.replace(whole, rules=rules)

    return dataclasses.replace(family, table=table)


def test_array_that_no_rule_covers_is_refused_by_name():
    model = arrays_of_model(random_model(head_dim=8))
    family = without_one_rule(LLAMA, "layers.{L}.attn.v_proj.kernel")
    with pytest.raises(CheckpointError) as error:
        plan_export(model, [family], None, 1 << 30)
    assert "llama: no rule covers layers.0:3.attn.v_proj.kernel of the model" in str(error.value)


def test_small_files_are_written_under_their_names(tmp_path):
    write_texts(tmp_path, {"a.json": b"1", "b.json": b"2"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "a.json": b"1",
        "b.json": b"2",
    }
