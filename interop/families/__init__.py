"""Checkpoint families: one module per model family, with its config format and tensor rules."""

from collections.abc import Collection

from . import huggingface
from .common.family import Derived, Family, Layout, RuleTable
from .common.fields import Fields
from .discovery import families_in
from .meta.llama import META_LLAMA
from .source_systems.components_encoder_decoder import COMPONENTS_ENCODER_DECODER
from .source_systems.components_sequence import COMPONENTS_AUTOREGRESSIVE, COMPONENTS_REGRESSION
from .source_systems.llm import LLM
from .source_systems.nima_gpt import NIMA_GPT
from .source_systems.nima_transformer import NIMA_TRANSFORMER
from .source_systems.tlama import TLAMA

__all__ = ["FAMILIES", "Derived", "Family", "Fields", "Layout", "RuleTable", "variant_of"]

# If several families support a model, the first one is written: the most widely read ones.
_FIRST = (
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3", "gemma2", "gemma3_text"),
    *("gpt2", "gpt_neox", "mixtral", "qwen3_moe", "llama4_text", "llama4", "t5", "t5_encoder"),
    "bart",
)
FAMILIES = (
    *families_in(huggingface, _FIRST),
    META_LLAMA,
    TLAMA,
    LLM,
    NIMA_GPT,
    NIMA_TRANSFORMER,
    COMPONENTS_REGRESSION,
    COMPONENTS_AUTOREGRESSIVE,
    COMPONENTS_ENCODER_DECODER,
)


def variant_of(family: Family, names: Collection[str]) -> Family:
    """Returns the family with the checkpoint's `model_type` that its tensors belong to.

    Args:
        family: the first family with that `model_type`.
        names: the names of the checkpoint's tensors.
    """
    same = (one for one in FAMILIES if one.model_type == family.model_type and one.applies(names))
    return next(same, family) if family.model_type is not None else family
