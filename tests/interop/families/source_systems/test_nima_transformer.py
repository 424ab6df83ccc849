"""nima's TransformerModel with every switch, beside the reference, its source padded."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nima_switches import LAYERS, SWITCHES, named
from source_family import Inputs, SourceFamily

from jaxllm.config import EncoderDecoderConfig, make_config, with_fields
from jaxllm.errors import UserError
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.source_systems.nima_transformer import (
    arguments,
    read_config,
    write_config,
)

TRANSFORMER = {
    "src_vocab_size": 96,
    "tgt_vocab_size": 80,
    "n_encoder_layers": 3,
    "n_decoder_layers": 2,
    **LAYERS,
}
VARIANTS = named(
    "nima-transformer",
    TRANSFORMER,
    *SWITCHES,
    {"norm": "pre", "position": "learned"},
    {"position": "learned", "feed_forward": "glu"},
    {"tie_weights": True, "pad_idx": 3},
)


class TestNimaTransformer(SourceFamily):
    cases = VARIANTS
    format = "nima"
    buffer = "pos_encoding.pe"
    relu_inputs = "linear1"

    def inputs(self, fields, seed=1):
        rng = np.random.default_rng(seed)
        src, pad = rng.integers(4, 96, (2, 320)), fields.get("pad_idx", 0)
        src[0, 200:] = pad
        return Inputs([src, rng.integers(0, 80, (2, 300))], {"src_segment_ids": src != pad})


def read(fields: dict) -> EncoderDecoderConfig:
    given = Fields({"model_type": "nima-transformer", **fields})
    values, _ = read_config(given, {})
    assert given.finish() == []
    return make_config(values)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_what_is_usual_is_not_said(fields):
    """Written without what it came with, a config has the same fields, but for the padding's."""
    expected = {name: value for name, value in fields.items() if name != "pad_idx"}
    written = write_config(read(fields), {})
    assert written == {"model_type": "nima-transformer", **expected}


def test_both_stacks_have_one_table_of_learned_positions():
    config = read({**TRANSFORMER, "position": "learned"})
    assert config.share_positions
    assert config.encoder.positions.kind == "none"
    assert not read(TRANSFORMER).share_positions


@pytest.mark.parametrize(
    ("stack", "changes", "words"),
    [
        ("decoder", {"embed_scale": 1.0}, "embed_scale"),
        ("decoder", {"head.bias": False}, r"head\.bias=False"),
        ("decoder", {"norms.final": True}, r"norms\.final=True"),
        ("decoder", {"dropout": 0.5}, r"dropout=0\.1 in the encoder and 0\.5"),
        ("encoder", {"init.kind": "normal"}, r"init\.kind='normal' in the encoder and 'xavier'"),
        ("encoder", {"positions.kind": "rope"}, r"encoder\.positions\.kind='rope'"),
        ("encoder", {"mlp_dim": 60}, "mlp_dim=60 in the encoder and 56"),
    ],
    ids=str,
)
def test_what_the_arguments_cannot_say_is_refused(stack, changes, words):
    config = read(TRANSFORMER)
    changed = with_fields(getattr(config, stack), changes)
    with pytest.raises(ValueError, match=words):
        write_config(dataclasses.replace(config, **{stack: changed}), {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source_vocab_size": None}, "source_vocab_size=None"),
        ({"start_token": 2}, "start_token=2"),
    ],
    ids=str,
)
def test_what_no_stack_has_is_refused_as_well(changes, words):
    with pytest.raises(ValueError, match=words):
        write_config(dataclasses.replace(read(TRANSFORMER), **changes), {})


def test_padding_has_a_token_that_stands_nowhere_else():
    model, target = SimpleNamespace(pad_idx=3), torch.tensor([[1, 2]])
    source, mask = torch.tensor([[5, 6, 3], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    given = {"source": source, "source_mask": mask, "target": target}
    found, same = arguments(model, given)
    assert found.tolist() == [[5, 6, 3], [7, 3, 3]]
    assert same is target
    with pytest.raises(UserError, match="contains token 3"):
        arguments(model, {"source": source, "target": target})
