"""nima's GPTModel with every switch, beside the reference."""

import numpy as np
import pytest
import torch
from nima_switches import LAYERS, SWITCHES, named
from source_cases import write_fields
from source_family import Inputs, SourceFamily
from tiny import random_model

from jaxllm.config import make_config
from jaxllm.interop import load_pretrained
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.source_systems.nima_gpt import arguments, read_config, write_config
from jaxllm.interop.formats.stored_tensor import CheckpointError

GPT = {"vocab_size": 96, "n_layers": 3, **LAYERS}
VARIANTS = named(
    "nima-gpt",
    GPT,
    *SWITCHES,
    {"norm": "pre", "position": "sinusoidal"},
    {"position": "sinusoidal", "tie_weights": False},
)


class TestNimaGpt(SourceFamily):
    cases = VARIANTS
    format = "nima"
    buffer = "pos_encoding.pe"
    relu_inputs = "linear1"

    def inputs(self, fields, seed=1):
        return Inputs([np.random.default_rng(seed).integers(0, 96, (2, 320))])


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_what_is_usual_is_not_said(fields):
    """Written without what it came with, a config has the same fields."""
    given = Fields({"model_type": "nima-gpt", **fields})
    values, _ = read_config(given, {})
    assert given.finish() == []
    assert write_config(make_config(values), {}) == {"model_type": "nima-gpt", **fields}


def test_what_it_came_with_is_kept():
    fields = {**GPT, "tie_weights": True, "norm": "post", "dropout": 0.1}
    values, _ = read_config(Fields(dict(fields)), {})
    written = write_config(make_config(values), fields)
    assert written == {"model_type": "nima-gpt", **fields}


def test_a_decoder_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"nima's GPTModel does not support .*norms\.kind='rms'"):
        write_config(random_model().config, {})


def test_a_head_that_is_no_copy_is_refused(tmp_path):
    reference = write_fields({"model_type": "nima-gpt", **GPT}, tmp_path)
    state = dict(reference.state_dict())
    state["output_projection.weight"] = state["output_projection.weight"] + 1
    torch.save(state, tmp_path / "state_dict.pth")
    with pytest.raises(CheckpointError, match=r"output_projection\.weight should be a copy of"):
        load_pretrained(tmp_path)


def test_the_reference_is_called_with_a_mask_if_there_is_one():
    assert arguments(None, {"target": 1, "target_mask": 2}) == (1, 2)
    assert arguments(None, {"target": 1}) == (1, None)
