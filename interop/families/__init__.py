"""The families of checkpoints that can be read and written."""

from .bart import BART
from .components_encoder_decoder import COMPONENTS_ENCODER_DECODER
from .components_sequence import COMPONENTS_AUTOREGRESSIVE, COMPONENTS_REGRESSION
from .family import Derived, Family, Fields, Layout, Table, nearest
from .gemma2 import GEMMA2
from .gemma3_text import GEMMA3_TEXT
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .llama import LLAMA
from .llama4 import LLAMA4
from .llama4_text import LLAMA4_TEXT
from .llm import LLM
from .meta_llama import META_LLAMA
from .mistral import MISTRAL
from .mixtral import MIXTRAL
from .nima_gpt import NIMA_GPT
from .nima_transformer import NIMA_TRANSFORMER
from .olmo2 import OLMO2
from .phi3 import PHI3
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE
from .smollm3 import SMOLLM3
from .t5 import T5
from .tlama import TLAMA

__all__ = ["FAMILIES", "Derived", "Family", "Fields", "Layout", "Table", "nearest"]

# Of families that can say the same model, the first is written.
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
    BART,
    META_LLAMA,
    TLAMA,
    LLM,
    NIMA_GPT,
    NIMA_TRANSFORMER,
    COMPONENTS_REGRESSION,
    COMPONENTS_AUTOREGRESSIVE,
    COMPONENTS_ENCODER_DECODER,
)
