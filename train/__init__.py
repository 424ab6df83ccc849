"""Training: everything that needs a mesh, a disk or a clock."""

from .config import ConfigError, TrainConfig, load_config
from .loop import TrainResult, train
from .mesh import make_mesh, use_virtual_devices

__all__ = [
    "ConfigError",
    "TrainConfig",
    "TrainResult",
    "load_config",
    "make_mesh",
    "train",
    "use_virtual_devices",
]
