"""Training data: text, pairs, preferences, vectors and synthetic tasks, as seeded batches."""

from collections.abc import Mapping
from typing import Any

from .chat import ChatConfig
from .documents import DataConfig, load_corpus
from .mixture import MixtureConfig
from .pairs import PairsConfig
from .preference.config import PreferencesConfig
from .tasks import TaskConfig
from .tokens import TokensConfig
from .vectors import VectorsConfig

__all__ = [
    "ChatConfig",
    "Data",
    "DataConfig",
    "Documents",
    "MixtureConfig",
    "PreferencesConfig",
    "Tokenized",
    "TokensConfig",
    "find_data_class",
    "load_corpus",
]

# Documents, which share rows as `packing` says.
Documents = DataConfig | ChatConfig | TokensConfig | MixtureConfig
# Data whose tokenizer is by default the one that the model came with.
Tokenized = Documents | PairsConfig | PreferencesConfig
Data = Tokenized | VectorsConfig | TaskConfig


def find_data_class(values: Mapping[str, Any]) -> type[Data]:
    """Returns the data config class that these field names select; DataConfig by default.

    Every field of DataConfig is optional; each other class has a required field of its own.
    """
    by_field = {
        "chat": ChatConfig,
        "tokens": TokensConfig,
        "mixture": MixtureConfig,
        "pairs": PairsConfig,
        "preferences": PreferencesConfig,
        "vectors": VectorsConfig,
        "task": TaskConfig,
    }
    return next((cls for field, cls in by_field.items() if field in values), DataConfig)
