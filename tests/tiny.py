"""Tiny models with distinct random numbers everywhere, and how to compare what they compute."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxllm.config import Config, DecoderConfig, with_fields
from jaxllm.models import Model, build_abstract
from jaxllm.models.decoder import Decoder
from jaxllm.params import named_parameters, with_arrays

# N != K, H != D / N, and sizes that differ from each other: a mix-up of axes changes a shape.
TINY = DecoderConfig(
    vocab_size=96,
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=56,
    max_len=512,
)

# 17 MB a layer in bfloat16: for what must not grow with the number of layers.
WIDE = dataclasses.replace(
    TINY,
    vocab_size=256,
    embed_dim=1024,
    num_heads=16,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=2048,
)


def random_model(
    changes: Mapping[str, object] = {}, /, *, seed: int = 0, **fields: object
) -> Decoder:
    """A tiny model with distinct random numbers in every parameter; no norm scale is one.

    `changes` and `fields` are those of `with_fields`.
    """
    return random_of(with_fields(TINY, changes, **fields), seed)


def random_of(config: Config, seed: int = 0) -> Model:
    """The model of a config, with numbers like those of `random_model`."""
    model = build_abstract(config)
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, variable in named_parameters(model).items():
        value = variable.get_value()
        center = 1.0 if name.endswith("scale") else 0.0
        spread = 0.3 if name.endswith("scale") else 0.15
        drawn = center + spread * rng.standard_normal(value.shape)
        arrays[name] = jnp.asarray(drawn, value.dtype)
    return with_arrays(model, arrays)


def relative_l2(ours: object, reference: object) -> float:
    """`|ours - reference| / |reference|` in float64."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
