"""Training: run configs, data, optimizers, the training loop and its checkpoints."""

from .config import ConfigError, TrainConfig, load_config
from .cross_framework import read_state, write_run
from .loop import TrainResult, train
from .mesh import make_mesh, use_virtual_devices

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
