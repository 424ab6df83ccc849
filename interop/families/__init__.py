"""Checkpoint families: one module per model family, with its config format and tensor rules."""

from collections.abc import Collection

from .common.family import Derived, Family, Layout, RuleTable
from .common.fields import Fields
from .huggingface.bart import BART
from .huggingface.gemma2 import GEMMA2
from .huggingface.gemma3_text import GEMMA3_TEXT
from .huggingface.gpt2 import GPT2
from .huggingface.gpt_neox import GPT_NEOX
from .huggingface.llama import LLAMA
from .huggingface.llama4 import LLAMA4
from .huggingface.llama4_text import LLAMA4_TEXT
from .huggingface.mistral import MISTRAL
from .huggingface.mixtral import MIXTRAL
from .huggingface.multimodal import MULTIMODAL
from .huggingface.olmo2 import OLMO2
from .huggingface.phi3 import PHI3
from .huggingface.qwen2 import QWEN2
from .huggingface.qwen3 import QWEN3
from .huggingface.qwen3_moe import QWEN3_MOE
from .huggingface.smollm3 import SMOLLM3
from .huggingface.t5 import T5
from .huggingface.t5_encoder import T5_ENCODER
from .meta.llama import META_LLAMA
from .source_systems.components_encoder_decoder import COMPONENTS_ENCODER_DECODER
from .source_systems.components_sequence import COMPONENTS_AUTOREGRESSIVE, COMPONENTS_REGRESSION
from .source_systems.llm import LLM
from .source_systems.nima_gpt import NIMA_GPT
from .source_systems.nima_transformer import NIMA_TRANSFORMER
from .source_systems.tlama import TLAMA

__all__ = ["FAMILIES", "Derived", "Family", "Fields", "Layout", "RuleTable", "variant_of"]

# If several families support a model, the first one is written.
FAMILIES = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    SMOLLM3,
    OLMO2,
    PHI3,
    GEMMA2,
    GEMMA3_TEXT,
    GPT2,
    GPT_NEOX,
    MIXTRAL,
    QWEN3_MOE,
    LLAMA4_TEXT,
    LLAMA4,
    T5,
    T5_ENCODER,
    BART,
    *MULTIMODAL,
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
