"""The catalogue of config fields that transformers reads is current, and complete at run time."""

import ast
import dataclasses
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from encoder_decoder_cases import CASES as PAIRS
from hf_cases import CASES as DECODERS
from tiers import examples
from tiny import random_model

from benchmarks.config_fields import HARMLESS, as_text, catalogue, fields_read, rope_fields_read
from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.interop.families.common.config_fields import fields_read as read_fields

# Read to describe a model, or to be arguments that none of these models uses.
BOOKKEEPING = {
    *("architectures", "transformers_version", "name_or_path"),
    *("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio"),
}
CASES = {name: case for name, case in {**DECODERS, **PAIRS}.items() if "/" not in name}


@pytest.mark.exhaustive
@pytest.mark.pinned
def test_the_catalogue_is_that_of_the_installed_transformers():
    stored = files("jaxllm.interop.families.huggingface") / "config_fields.json"
    assert stored.read_text() == as_text(catalogue())


def test_every_way_to_read_a_field_is_found():
    tree = ast.parse("""
def forward(self, config):
    a = config.width + self.config.depth
    b = getattr(config, "causal", True)
    config.written = 1
    other.unread
    if hasattr(config, "scale"):
        return text_config.rate if config.bos_token_id else self.own
    c = kwargs.pop("theta", 1.0) if "windows" in kwargs else None
""")
    found = dict(fields_read(tree))
    assert found == {"width": [], "depth": [], "causal": [True], "scale": [], "rate": []}
    own = dict(fields_read(tree, in_config=True))
    assert (own["theta"], own["windows"]) == ([1.0], [])
    assert "own" in own


def test_every_way_to_read_a_rope_parameter_is_found():
    tree = ast.parse("""
def compute(config):
    base = config.rope_parameters["rope_theta"]
    given = rope_parameters_dict.get("factor")
    part = rope_parameters_dict.get("partial", 1.0)
    return config.other["unread"]
""")
    assert rope_fields_read(tree) == {"rope_theta": [[]], "factor": [[None]], "partial": [[1.0]]}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("is_causal", False, False),
        ("is_causal", True, True),
        ("is_causal", None, False),
        ("quantization_config", {"bits": 4}, False),
        ("quantization_config", None, True),
        ("unsloth_version", "2025.1", True),
        ("auto_map", {"AutoModel": "x.Y"}, True),
        ("_attn_implementation", "eager", True),
        ("unk_token_id", 3, True),
        ("temperature", 0.7, True),
    ],
)
def test_a_field_is_inert_unless_transformers_reads_another_value(name, value, expected):
    assert read_fields("llama").is_inert(name, value) is expected


def test_a_field_may_go_by_another_name_which_wins_as_in_transformers():
    reads = read_fields("bart")
    found = reads.with_names({"encoder_layers": 3, "num_hidden_layers": 5, "hidden_size": None})
    assert found["encoder_layers"] == 5
    assert "d_model" not in found
    config = transformers.BartConfig(encoder_layers=3, num_hidden_layers=5)
    assert config.encoder_layers == 5


def test_a_kind_of_rope_reads_its_own_parameters():
    llama = read_fields("llama")
    assert llama.of_rope("yarn").is_inert("finetuned", True)
    assert not llama.of_rope("yarn").is_inert("beta_fast", 16)
    assert llama.of_rope("default").is_inert("factor", 4.0)
    assert llama.of_rope("default").is_inert("partial_rotary_factor", 0.5)
    assert not read_fields("phi3").of_rope("default").is_inert("partial_rotary_factor", 0.5)


def test_an_absent_field_has_the_default_of_its_class():
    assert read_fields("llama4_text").default("hidden_size") == 5120
    assert read_fields("llama").default("no_such_field") is None


@pytest.mark.parametrize("name", examples(CASES, "llama", "mixtral", "t5"))
def test_whatever_a_running_model_reads_is_in_the_catalogue(name, monkeypatch):
    """An independent witness: the config's attributes are watched while the model runs."""
    model = CASES[name].build()
    parts = {type(model.config), *(type(part) for part in vars(model.config).values())}
    kinds = {kind for kind in parts if issubclass(kind, transformers.PreTrainedConfig)}
    seen: dict[str, set[str]] = {kind.model_type: set() for kind in kinds}
    for kind in kinds:
        own = kind.__getattribute__

        def watch(config, attribute, own=own, kind=kind):
            seen[kind.model_type].add(attribute)
            return own(config, attribute)

        monkeypatch.setattr(kind, "__getattribute__", watch)
    run(type(model)(model.config), model.config.is_encoder_decoder)
    for model_type, names in seen.items():
        reads = read_fields(model_type)
        known = {*reads.fields, *reads.aliases, *reads.aliases.values()}
        fields = {n for n in names if not n.startswith("_") and not HARMLESS.fullmatch(n)}
        (kind,) = (kind for kind in kinds if kind.model_type == model_type)
        declared = {field.name for field in dataclasses.fields(kind)}
        stated = {n for n in fields if n in declared or not hasattr(kind, n)}
        stated -= vars(transformers.GenerationConfig()).keys()  # looked for in every config
        assert stated
        assert sorted(stated - known - BOOKKEEPING) == []


def run(model: torch.nn.Module, is_pair: bool) -> None:
    """Runs a prompt and one more token, through the cache."""
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        if is_pair:
            cache = model(input_ids=tokens, decoder_input_ids=tokens).past_key_values
            model(input_ids=tokens, decoder_input_ids=tokens[:, :1], past_key_values=cache)
        else:
            cache = model(input_ids=tokens).past_key_values
            model(input_ids=tokens[:, :1], past_key_values=cache)


@pytest.fixture
def llama(tmp_path) -> Path:
    save_pretrained(random_model(head_dim=8), tmp_path / "llama")
    return tmp_path / "llama"


def test_a_field_that_changes_the_mask_is_refused_without_strict_too(llama):
    tokens = np.arange(40)[None]
    causal = logits_of_transformers(llama, tokens)
    file = llama / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_causal": False}))
    assert not np.allclose(logits_of_transformers(llama, tokens), causal, atol=1e-2)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"is_causal=False.* and transformers reads it"):
            load_pretrained(llama, strict=strict)


def logits_of_transformers(folder: Path, tokens: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()
