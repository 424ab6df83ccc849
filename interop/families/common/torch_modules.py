"""Rules for PyTorch modules in models without RoPE, and sinusoidal position buffers.

Arguments take the stored name first, then the name in the model.
"""

import numpy as np

from jaxllm.config import StackConfig
from jaxllm.interop.rules.rule import Rule
from jaxllm.layers.attention.sinusoids import wave_frequencies


def linear_rules(theirs: str, ours: str, out: str, into: str, *, bias: bool = False) -> list[Rule]:
    """Rules for an `nn.Linear`; `out` and `into` are its dimensions in PyTorch: "F", "(N H)"."""
    out_axes, in_axes = out.strip("()"), into.strip("()")
    rules = [Rule(f"{theirs}.weight : {out} {into}", f"{ours}.kernel : {in_axes} {out_axes}")]
    if bias:
        rules.append(Rule(f"{theirs}.bias : {out}", f"{ours}.bias : {out_axes}"))
    return rules


def attention_rules(
    theirs: str,
    ours: str,
    names: tuple[str, str, str, str],
    *,
    heads: str = "(N H)",
    bias: bool = False,
) -> list[Rule]:
    """Rules for the four projections of attention with as many key/value heads as query heads."""
    rules = []
    for name, inner in zip(names, ("q_proj", "k_proj", "v_proj"), strict=False):
        rules += linear_rules(f"{theirs}.{name}", f"{ours}.{inner}", heads, "D", bias=bias)
    return [
        *rules,
        *linear_rules(f"{theirs}.{names[3]}", f"{ours}.o_proj", "D", heads, bias=bias),
    ]


def half_and_half(length: int, width: int) -> np.ndarray:
    """Returns sinusoids with all sines before all cosines, as Marian stores them, in float32."""
    angles = np.arange(length)[:, None] / np.power(10000, 2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def sinusoids(config: StackConfig) -> np.ndarray:
    """Returns the sinusoidal position buffer that checkpoints store: (max_len, D), float32."""
    positions = np.arange(config.max_len, dtype=np.float32)
    angles = np.outer(positions, wave_frequencies(config.embed_dim, config.positions.waves))
    both = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    return both.reshape(config.max_len, -1)[:, : config.embed_dim]
