"""The model and the parameters that a run starts from, checked against its config."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.config import Dtype, check_has_head, with_fields
from jaxllm.lora.attach import add_lora
from jaxllm.models import Model, build_abstract
from jaxllm.numerics.float8 import check_qwix
from jaxllm.params import (
    Params,
    check_parameters,
    describe,
    from_description,
    initialize,
    named_parameters,
    split,
)
from jaxllm.train.config import ConfigError, TrainConfig
from jaxllm.train.step import Steps, TrainState

from .base import starting_params, with_wide_parameters


def model_to_train(config: TrainConfig, model: Model | None) -> Model:
    """Returns the model of a new run: abstract (shapes only) unless weights are given.

    With LoRA, its factors have shapes only.

    Raises ConfigError if `model` is missing, unexpected or not of the right dtype; CheckpointError
    if its parameters are not those of its config, so that the run could not be resumed.
    """
    if config.dtype == "float8":
        check_qwix()
    overrides: dict[str, Any] = {
        "numerics.dtype": activation_dtype(config),
        "numerics.matmul_dtype": "float8" if config.dtype == "float8" else None,
        "remat": config.remat,
        "attention.kernel": config.attention_kernel,
        "numerics.reduce_dtype": config.optimizer.reduce_dtype,
        "norms.sequence_parallel": config.mesh.sequence_parallel or None,
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    if config.model is not None and model is not None:
        raise ConfigError("both weights and a new model are given; set init_from, not model")
    lora, dtype = config.optimizer.lora, start_dtype(config)
    if config.model is not None:
        given |= {} if dtype == "float32" else {"numerics.param_dtype": dtype}
        model = build_abstract(with_fields(config.model, given))
    elif model is not None:
        check_parameters(model)
        bind, _ = split(from_description(describe(model), given))
        model = bind(split(model)[1])
    else:
        raise ConfigError(
            f"init_from={config.init_from!r} names a checkpoint, but no model was given; load it "
            "with load_pretrained and give it as `model`"
        )
    _check_dtype(model, dtype)
    check_has_head(model.config, "train")
    return model if lora is None else with_wide_parameters(add_lora(model, lora), lora)


def activation_dtype(config: TrainConfig) -> Dtype | None:
    """Returns the dtype of a run's activations; None: the model's."""
    return "bfloat16" if config.dtype == "float8" else config.dtype


def start_dtype(config: TrainConfig) -> Dtype:
    """Returns the dtype of the parameters that a run starts from; it trains few of them with LoRA.

    Those that LoRA trains are float32 from then on.
    """
    if config.optimizer.lora is not None:
        return config.optimizer.lora.base_dtype
    return "float32" if config.optimizer.precision == "float32" else "bfloat16"


def starting_weights(config: TrainConfig, model: Model, mesh: Mesh) -> Params:
    """Returns all parameters of a new run of the model from `model_to_train`."""
    lora = config.optimizer.lora
    if lora is not None:
        return starting_params(model, lora, mesh, config.seed, config.model and model.config)
    if config.model is not None:
        model = initialize(model.config, mesh, config.seed)
    return split(model)[1]


def _check_dtype(model: Model, dtype: str) -> None:
    """Raises ConfigError unless every parameter has the dtype that a run starts from."""
    other_dtypes = {
        variable.get_value().dtype.name
        for variable in named_parameters(model).values()
        if variable.get_value().dtype != np.dtype(dtype)
    }
    if other_dtypes:
        why = ", which loses small updates" if dtype == "float32" else ""
        raise ConfigError(
            f"the parameters are {', '.join(other_dtypes)}{why}; load them "
            f"with dtype={dtype!r}. For lower-precision activations set dtype in the run's config"
        )


def init_state(steps: Steps, weights: Params) -> TrainState:
    """Returns the state before the first step, sharded over the mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, steps.abstract_state.weights)
    return steps.init(jax.device_put(weights, shardings))
