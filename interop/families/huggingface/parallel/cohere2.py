"""Cohere 2 (Command R7B, A) in the Hugging Face format: Cohere with sliding windows on most layers.

The other layers, with full attention, have no RoPE.
"""

from jaxllm.config import LayerKind
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.rotary import layer_types, rope
from jaxllm.interop.families.common.fields import Fields

from .cohere import COMMON, rules

KINDS = {
    "sliding_attention": LayerKind(attention="window"),
    "full_attention": LayerKind(rope="none"),
}


def every_fourth_is_full(fields: Fields, count: int) -> list[str]:
    """Returns the types of layers that are not listed: the last of a period sees all tokens."""
    period = max(fields.take("sliding_window_pattern", int, 4), 1)
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(count)]


COHERE2 = described_family(
    "cohere2",
    "Cohere2ForCausalLM",
    (*COMMON, rope(), layer_types(every_fourth_is_full, 4096, KINDS)),
    rules,
)
