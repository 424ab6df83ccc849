"""The families of checkpoints that can be read and written."""

from .family import Derived, Family, Fields, Layout, Table, nearest
from .llama import LLAMA
from .meta_llama import META_LLAMA
from .tlama import TLAMA

__all__ = ["FAMILIES", "Derived", "Family", "Fields", "Layout", "Table", "nearest"]

FAMILIES = (LLAMA, META_LLAMA, TLAMA)
