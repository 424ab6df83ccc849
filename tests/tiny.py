"""Tiny models with random parameters, and the relative L2 error."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxllm.config import Config, DecoderConfig, with_fields
from jaxllm.models import Model, build_abstract
from jaxllm.models.decoder import Decoder
from jaxllm.params import named_parameters, with_arrays

# N != K, H != D / N, and all sizes are different, so that mixed-up axes change a shape.
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

# 17 MB per layer in bfloat16, for tests that memory does not grow with the number of layers.
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
    """Builds a tiny model with random numbers in every parameter; no norm scale is 1.

    Args:
        changes: changes to `TINY`, by dotted field name, as for `with_fields`.
        seed: for the random numbers.
        **fields: changes to `TINY`, by field name, as for `with_fields`.
    """
    return random_of(with_fields(TINY, changes, **fields), seed)


def random_of(config: Config, seed: int = 0) -> Model:
    """Builds the model of any config with random numbers in every parameter."""
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
    """Returns the relative L2 error `|ours - reference| / |reference|`, in float64."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
