"""Tiny configs of models over vectors, their inputs, and rows of different lengths."""

import jax
import numpy as np

from jaxllm.config import (
    AttentionConfig,
    MlpConfig,
    NormConfig,
    PositionConfig,
    SequenceConfig,
    SequenceToSequenceConfig,
    StackConfig,
    with_fields,
)

TOLERANCE = 3e-6  # relative L2, float32
D, N, H, LONGEST, WINDOW = 24, 4, 6, 16, 5
LAYERS = {
    **{"embed_dim": D, "num_layers": 2, "num_heads": N, "num_kv_heads": 2, "head_dim": H},
    **{"mlp_dim": 40, "max_len": LONGEST},
    "positions": PositionConfig(kind="sinusoidal"),
    "norms": NormConfig(kind="layer", placement="post", final=False),
    "attention": AttentionConfig(qkv_bias=True, out_bias=True),
    "mlp": MlpConfig(activation="relu", gated=False, bias=True),
}
SEQUENCE = SequenceConfig(input_dim=3, output_dim=2, **LAYERS)
BOTH_WAYS = with_fields(SEQUENCE, {"attention.causal": False})
PAIR = SequenceToSequenceConfig(
    encoder=with_fields(StackConfig(**LAYERS), {"attention.causal": False}),
    decoder=with_fields(SEQUENCE, {"attention.cross": True}),
    source_dim=4,
)

T, S = 13, 11
X_BTI = np.random.default_rng(0).standard_normal((3, T, 3)).astype(np.float32)
SOURCE_BSI = np.random.default_rng(1).standard_normal((3, S, 4)).astype(np.float32)

LENGTHS, SOURCE_LENGTHS = (T, 7, 1), (3, S, 6)


@jax.jit
def run(model, *inputs, **options):
    return model(*inputs, **options).logits


def segments(lengths: tuple[int, ...], width: int) -> np.ndarray:
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)


def padded(x: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """The rows cut to these lengths; what follows is far from anything."""
    return np.where(segments(lengths, x.shape[1])[..., None] == 1, x, 77).astype(np.float32)
