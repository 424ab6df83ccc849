"""The families of checkpoints that can be read and written."""

from .family import Derived, Family, Fields, Layout, Table, nearest
from .llama import LLAMA
from .meta_llama import META_LLAMA
from .qwen3 import QWEN3
from .tlama import TLAMA

__all__ = ["FAMILIES", "Derived", "Family", "Fields", "Layout", "Table", "nearest"]

# Of families that can say the same model, the first is written.
FAMILIES = (
    LLAMA,
    QWEN3,
    META_LLAMA,
    TLAMA,
)
