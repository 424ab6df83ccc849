"""The architecture of a model, as frozen data: a config is hashable and says everything."""

from .models import (
    Config,
    DecoderConfig,
    EncoderDecoderConfig,
    SequenceConfig,
    SequenceToSequenceConfig,
    TwoStackConfig,
    from_dict,
    make_config,
    to_dict,
    with_fields,
)
from .parts import (
    ROPE_SCALINGS,
    Activation,
    Dtype,
    Experts,
    LayerKind,
    Positions,
    RelativeBuckets,
    Remat,
    RopeLayout,
    RopeScaling,
    Temperature,
    Vision,
)
from .stack import (
    StackConfig,
)

__all__ = [
    "ROPE_SCALINGS",
    "Activation",
    "Config",
    "DecoderConfig",
    "Dtype",
    "EncoderDecoderConfig",
    "Experts",
    "LayerKind",
    "Positions",
    "RelativeBuckets",
    "Remat",
    "RopeLayout",
    "RopeScaling",
    "SequenceConfig",
    "SequenceToSequenceConfig",
    "StackConfig",
    "Temperature",
    "TwoStackConfig",
    "Vision",
    "from_dict",
    "make_config",
    "to_dict",
    "with_fields",
]
