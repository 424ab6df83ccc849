"""`TransformerModel` and `AutoregressiveTransformerModel` of the components system.

`components-regression` has one output per sequence, `components-autoregressive` one per token.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxllm.config import SequenceConfig
from jaxllm.interop.families.common.family import Derived, Family, Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.torch_modules import linear_rules, sinusoids
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

from .components import (
    SUPPORTED,
    from_the_start,
    layer_rules,
    layer_sizes,
    read_layers,
    reference_arguments,
    unsupported,
    write_layers,
)


def read_config(
    fields: Fields, stored: Mapping[str, StoredTensor], *, pooled: bool
) -> tuple[Json, Layout]:
    """Reads the constructor's arguments; only autoregressive models are causal by default."""
    config = {
        **read_layers(fields),
        "input_dim": fields.take("input_dim", int),
        "output_dim": fields.take("output_dim", int),
        "num_layers": fields.take("num_layers", int),
        "attention.causal": fields.take("apply_causal_mask", bool, not pooled),
        "pooled": pooled,
    }
    return config, Layout()


def write_config(config: SequenceConfig, base: Json, *, model_type: str, pooled: bool) -> Json:
    """Writes the constructor's arguments. Raises ValueError for what they do not support."""
    refuse(
        f"model_type {model_type!r}",
        config,
        (*SUPPORTED, "input_dim", "output_dim", "pooled"),
        {f"pooled={config.pooled}": config.pooled != pooled, **unsupported(config)},
    )
    return {
        **base,
        "model_type": model_type,
        "input_dim": config.input_dim,
        "num_layers": config.num_layers,
        "output_dim": config.output_dim,
        "apply_causal_mask": config.attention.causal,
        **write_layers(config, base),
    }


def table(config: SequenceConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of the state dict."""
    rules: list[Rule] = [
        *linear_rules("input_proj", "input_proj", "D", "I", bias=True),
        *layer_rules("layers.{L}", "layers.{L}", config),
        *linear_rules("out_proj", "output_proj", "O", "D", bias=True),
    ]
    sizes = {
        "I": config.input_dim,
        "O": config.output_dim,
        "L": config.num_layers,
        **layer_sizes(config),
    }
    return RuleTable(
        tuple(rules), sizes, derived=(Derived("pe.pe", lambda: sinusoids(config)[None]),)
    )


def reference(fields: Json, *, pooled: bool) -> Any:
    """Builds the PyTorch reference."""
    from jaxllm.interop.reference import components

    make = components.TransformerModel if pooled else components.AutoregressiveTransformerModel
    return make(**reference_arguments(fields))


def _family(model_type: str, *, pooled: bool) -> Family:
    return Family(
        name=model_type,
        format="components",
        config_file="config.json",
        model_type=model_type,
        read_config=partial(read_config, pooled=pooled),
        write_config=partial(write_config, model_type=model_type, pooled=pooled),
        table=table,
        config_class=SequenceConfig,
        reference=partial(reference, pooled=pooled),
        arguments=from_the_start,
    )


COMPONENTS_REGRESSION = _family("components-regression", pooled=True)
COMPONENTS_AUTOREGRESSIVE = _family("components-autoregressive", pooled=False)
