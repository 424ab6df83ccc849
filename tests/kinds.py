"""Tiny configs of every kind of model that can be trained, and random batches for them."""

import numpy as np
from tiny import TINY

from jaxllm.config import (
    AttentionConfig,
    DecoderConfig,
    EncoderDecoderConfig,
    ExpertsConfig,
    LayerKind,
    SequenceConfig,
    SequenceToSequenceConfig,
    StackConfig,
    VisionConfig,
)

B, T = 4, 6
SIZES = {
    name: getattr(TINY, name)
    for name in ("embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_len")
} | {"num_layers": 2}
ENCODER = StackConfig(**SIZES, attention=AttentionConfig(causal=False))
CONFIGS = {
    "sees images": DecoderConfig(
        **SIZES,
        vocab_size=20,
        vision=VisionConfig(
            **{"image_size": 16, "patch_size": 4, "embed_dim": 16, "num_layers": 1},
            **{"num_heads": 2, "mlp_dim": 24, "output_dim": 40, "image_token": 19},
        ),
    ),
    "encoder-decoder": EncoderDecoderConfig(
        encoder=ENCODER,
        decoder=DecoderConfig(**SIZES, vocab_size=20, attention=AttentionConfig(cross=True)),
        source_vocab_size=24,
    ),
    "pooled": SequenceConfig(
        **SIZES, attention=AttentionConfig(causal=False), input_dim=3, output_dim=5, pooled=True
    ),
    "each vector": SequenceConfig(
        **SIZES,
        input_dim=3,
        output_dim=5,
        pattern=(LayerKind(mlp="experts"),),
        experts=ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24, aux_weight=0.3),
    ),
    "vectors given vectors": SequenceToSequenceConfig(
        encoder=ENCODER,
        decoder=SequenceConfig(
            **SIZES, input_dim=5, output_dim=5, attention=AttentionConfig(cross=True)
        ),
        source_dim=3,
    ),
}


WAVES = SequenceConfig(**SIZES, input_dim=2, output_dim=2)  # autoregressive over vectors


def batch_of(kind: str, B: int = B, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws a random batch in which some targets are masked out."""
    rng = np.random.default_rng(seed)
    mask = rng.random((B, T)) < 0.7
    mask[0] = True
    if kind == "sees images":
        tokens = rng.integers(0, 19, (B, T + 1))
        tokens[:, :4] = 19
        return {"tokens": tokens, "mask": mask, "images": normal(rng, B, 3, 16, 16)}
    if kind == "encoder-decoder":
        lengths = rng.integers(3, 9, B)
        source_mask = np.arange(8) < lengths[:, None]
        source = np.where(source_mask, rng.integers(0, 24, (B, 8)), 0)
        tokens = rng.integers(0, 20, (B, T + 1))
        return {"source": source, "source_mask": source_mask, "tokens": tokens, "mask": mask}
    if kind == "pooled":
        return {"inputs": normal(rng, B, T, 3), "targets": normal(rng, B, 5), "mask": mask[:, 1]}
    return {"inputs": normal(rng, B, T, 3), "targets": normal(rng, B, T, 5), "mask": mask}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)
