"""Model FLOPs of a training step, by which model FLOPs utilization (MFU) is defined.

Source: PaLM (Chowdhery et al., 2022), appendix B: a token costs `6 N + 12 L H Q T` FLOPs, for N
parameters, L layers, H heads of size Q and T tokens per sequence. What is recomputed in the
backward pass does not count, and causal attention counts as if every token saw all T.
"""

from typing import Any

from jaxllm.config import (
    Config,
    DecoderConfig,
    StackConfig,
    VisionConfig,
    stacks_of,
)
from jaxllm.models import Model
from jaxllm.params import named_parameters


def flops_per_example(model: Model, seq_len: int, *, with_image: bool = False) -> float:
    """Returns the model FLOPs of training on one example.

    N leaves out embeddings that are only looked up, and of a layer's experts it counts the `top_k`
    that a token goes to. T is at most the window or the chunk of a layer that has one.

    Args:
        model: may be abstract.
        seq_len: tokens or vectors per sequence; also the length of a source.
        with_image: whether each example has an image, which the vision encoder reads.
    """
    config: Any = model.config
    text = vision = 0
    for name, variable in named_parameters(model).items():
        size = active_size(config, name, variable)
        if name.startswith("vision."):
            vision += size
        elif not is_looked_up(config, name):
            text += size
    attended = sum(_attention(stack, seq_len) for stack in stacks_of(config))
    total = seq_len * (6.0 * text + attended)
    images = config.vision if isinstance(config, DecoderConfig) and with_image else None
    if images is not None:
        total += images.num_patches * (6.0 * vision + _vision_attention(images))
    return total


def active_size(config: Config, name: str, variable: Any) -> int:
    """Returns how many elements of a parameter a token is processed by."""
    size = variable.get_value().size
    stack = stacks_of(config)[-1]
    is_chosen = "E" in variable.dims and ".router." not in name
    if stack.experts is None or not is_chosen:
        return size
    return size * stack.experts.top_k // stack.experts.num_experts


def is_looked_up(config: Any, name: str) -> bool:
    """Whether a parameter is a table of which tokens take rows, without a product of matrices."""
    return name.endswith(".embedding") and not is_head(config, name)


def is_head(config: Any, name: str) -> bool:
    """Whether a parameter is the kernel of the output head, perhaps tied to the embedding."""
    last = stacks_of(config)[-1]
    is_tied = isinstance(last, DecoderConfig) and last.head.tied
    own = ("embed.embedding", "decoder.embed.embedding") if is_tied else ()
    return name.endswith("lm_head.kernel") or name in own


def _attention(stack: StackConfig, seq_len: int) -> float:
    """FLOPs of a token's scores and weighted sums over all layers: 12 H Q T each, H the mean of
    the widths of keys and values.

    Layers with a recurrent state read it for the key and the query, and correct it: 18 H Q W.
    """
    limits = {"window": stack.attention.window, "chunk": stack.attention.chunk}
    kinds = [kind.attention for kind in stack.kinds]
    spans = [min(seq_len, limits.get(one) or seq_len) for one in kinds if one != "delta"]
    if stack.attention.cross:
        spans += [seq_len] * stack.num_layers
    states, delta = kinds.count("delta"), stack.attention.delta
    size = 0 if delta is None else delta.num_heads * delta.key_dim * delta.value_dim
    attended = stack.num_heads * (stack.head_dim + stack.value_dim) * sum(spans)
    return 6.0 * attended + 18.0 * states * size


def _vision_attention(vision: VisionConfig) -> float:
    return 12.0 * vision.num_layers * vision.embed_dim * vision.num_patches
