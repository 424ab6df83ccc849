"""Model architectures as frozen, hashable dataclasses. A config fully determines a model."""

from .attention import AttentionConfig, AttentionKernel, QKNorm, TemperatureConfig
from .fields import (
    config_class,
    defaults,
    flatten,
    from_dict,
    make_config,
    to_dict,
    upgraded,
    with_fields,
)
from .mlp import Activation, ExpertsConfig, MlpConfig
from .models import (
    Config,
    DecoderConfig,
    EncoderDecoderConfig,
    HeadConfig,
    SequenceConfig,
    SequenceToSequenceConfig,
    TwoStackConfig,
    check_has_head,
    has_head,
    stacks_of,
    with_head,
)
from .moved import MOVED, is_moved, upgrade_name
from .norms import NormConfig, NormKind, NormPlacement
from .numerics import Dtype, Init, InitConfig, NumericsConfig, Remat, dtype_fields
from .positions import (
    ROPE_SCALINGS,
    PositionConfig,
    Positions,
    RelativeBuckets,
    RopeConfig,
    RopeLayout,
    RopeScaling,
    Waves,
)
from .stack import LayerKind, StackConfig
from .vision import VisionConfig

__all__ = [
    "MOVED",
    "ROPE_SCALINGS",
    "Activation",
    "AttentionConfig",
    "AttentionKernel",
    "Config",
    "DecoderConfig",
    "Dtype",
    "EncoderDecoderConfig",
    "ExpertsConfig",
    "HeadConfig",
    "Init",
    "InitConfig",
    "LayerKind",
    "MlpConfig",
    "NormConfig",
    "NormKind",
    "NormPlacement",
    "NumericsConfig",
    "PositionConfig",
    "Positions",
    "QKNorm",
    "RelativeBuckets",
    "Remat",
    "RopeConfig",
    "RopeLayout",
    "RopeScaling",
    "SequenceConfig",
    "SequenceToSequenceConfig",
    "StackConfig",
    "TemperatureConfig",
    "TwoStackConfig",
    "VisionConfig",
    "Waves",
    "check_has_head",
    "config_class",
    "defaults",
    "dtype_fields",
    "flatten",
    "from_dict",
    "has_head",
    "is_moved",
    "make_config",
    "stacks_of",
    "to_dict",
    "upgrade_name",
    "upgraded",
    "with_fields",
    "with_head",
]
