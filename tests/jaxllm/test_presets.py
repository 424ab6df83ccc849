"""Presets have the specified sizes, as the reference has, and the specified initialization."""

import numpy as np
import pytest
import torch
from flax import nnx
from tiers import examples

from jaxllm.config import (
    make_config,
    with_fields,
)
from jaxllm.interop.families import Fields
from jaxllm.interop.families.source_systems.nima_gpt import NIMA_GPT
from jaxllm.interop.families.source_systems.nima_transformer import NIMA_TRANSFORMER
from jaxllm.interop.reference import nima
from jaxllm.models import build, build_abstract
from jaxllm.params import count_parameters, named_parameters
from jaxllm.presets import SIZES, gpt, transformer

MILLIONS = {"tiny": (10, 32000), "small": (125, 50257), "medium": (350, 50257)}


def of_reference(reference: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in reference.parameters())


def read(family, **arguments):
    return make_config(family.read_config(Fields(arguments), {})[0])


@pytest.mark.parametrize("size", SIZES)
def test_gpt_has_the_specified_number_of_parameters(size):
    millions, vocab_size = MILLIONS[size]
    config = gpt(size, vocab_size)
    found = count_parameters(build_abstract(config))
    assert found / 1e6 == pytest.approx(millions, rel=0.16 if size == "tiny" else 0.02)
    with torch.device("meta"):
        assert found == of_reference(nima.GPTModel(vocab_size, **nima.PRESETS[size]))
    assert config == read(NIMA_GPT, vocab_size=vocab_size, **nima.PRESETS[size])


@pytest.mark.parametrize("size", SIZES)
def test_transformer_has_the_layers_in_each_stack(size):
    config = transformer(size, 32000, 30000)
    layers = dict(nima.PRESETS[size])
    layers["n_encoder_layers"] = layers["n_decoder_layers"] = layers.pop("n_layers")
    arguments = {"src_vocab_size": 32000, "tgt_vocab_size": 30000, **layers}
    with torch.device("meta"):
        reference = nima.TransformerModel(**arguments)
    assert count_parameters(build_abstract(config)) == of_reference(reference)
    assert config == read(NIMA_TRANSFORMER, **arguments)


def test_changes_apply_to_all_stacks():
    config = gpt("tiny", 300, {"positions.kind": "rope"}, dropout=0.0)
    assert (config.positions.kind, config.dropout) == ("rope", 0.0)
    config = transformer("tiny", 300, 300, {"norms.placement": "pre", "norms.final": True})
    assert config.encoder.norms.placement == config.decoder.norms.placement == "pre"
    with pytest.raises(ValueError, match="size='huge' is not one of tiny, small, medium"):
        gpt("huge")


@pytest.mark.parametrize("init", examples(["xavier", "normal"], "xavier"))
def test_every_parameter_has_the_specified_initialization(init):
    """Kernels are xavier or normal (0.02), tables normal (0.02), biases 0 and norm scales 1."""
    changes = {"init.kind": init, "positions.kind": "distance", "head.tied": False}
    decoder = gpt("tiny", 300, changes)
    encoder_decoder = transformer("tiny", 300, 280, {"init.kind": init})
    for config in (decoder, encoder_decoder, with_fields(decoder, {"positions.kind": "learned"})):
        for name, variable in named_parameters(build(config, rngs=nnx.Rngs(0))).items():
            value = np.asarray(variable.get_value())
            if name.endswith("bias") or name.endswith("scale"):
                assert (value == name.endswith("scale")).all(), name
            elif init == "normal" or name.endswith("embedding"):
                assert value.std() == pytest.approx(0.02, rel=0.05), name
                assert np.abs(value).max() > 0.05, name
            else:
                fans = fans_of(variable.dims, value.shape)
                bound = (6 / sum(fans)) ** 0.5
                assert 0.99 * bound < np.abs(value).max() <= bound, name
                assert value.std() == pytest.approx(bound / 3**0.5, rel=0.02), name


def fans_of(dims: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Fan-in and fan-out of the `nn.Linear` that a kernel corresponds to, in any order."""
    sizes = dict(zip(dims, shape[-len(dims) :], strict=True))
    own = sizes.pop("D")
    return own, int(np.prod([*sizes.values()]))
