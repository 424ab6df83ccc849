"""Training: run configs, data, optimizers, the training loop and its checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import ConfigError, TrainConfig, load_config
from .mesh import make_mesh, use_virtual_devices

if TYPE_CHECKING:
    from .cross_framework import read_state, write_run
    from .loop import TrainResult, train

__all__ = [
    "ConfigError",
    "TrainConfig",
    "TrainResult",
    "load_config",
    "make_mesh",
    "read_state",
    "train",
    "use_virtual_devices",
    "write_run",
]
# Imported when they are used: reading a config needs neither checkpoints nor the loop.
_LATER = {
    **dict.fromkeys(("read_state", "write_run"), "cross_framework"),
    **dict.fromkeys(("TrainResult", "train"), "loop"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)
