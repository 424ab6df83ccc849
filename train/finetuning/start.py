"""The model and the parameters that a run starts from, checked against its config."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.config import Dtype, check_has_head, with_fields
from jaxllm.errors import UserError
from jaxllm.lora.attach import add_lora, is_trained
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.given import base_of, check_factors, given_factors
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
    with_arrays,
)
from jaxllm.train.config import ConfigError, TrainConfig
from jaxllm.train.data import PreferencesConfig
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
    factors: dict[str, jax.Array] = {}
    if config.model is not None:
        given |= {} if dtype == "float32" else {"numerics.param_dtype": dtype}
        model = build_abstract(with_fields(config.model, given))
    elif model is not None:
        factors = given_factors(model)
        if factors:
            _check_given(config, model)
            model = base_of(model)
        check_parameters(model)
        bind, _ = split(from_description(describe(model), given))
        model = bind(split(model)[1])
    else:
        raise ConfigError(
            f"init_from={config.init_from!r} names a checkpoint, but no model was given; load it "
            "with load_pretrained and give it as `model`"
        )
    # With an adapter to start from, what it has trained in full is float32 already.
    _check_dtype(model, dtype, lora if factors else None)
    check_has_head(model.config, "train")
    if lora is None:
        return model
    adapted = with_wide_parameters(add_lora(model, lora), lora)
    shapes = {name: variable.get_value() for name, variable in named_parameters(adapted).items()}
    return with_arrays(adapted, {**shapes, **factors}) if factors else adapted


def _check_given(config: TrainConfig, model: Model) -> None:
    """Raises ConfigError unless a run can go on from the adapter that its model has."""
    if config.optimizer.lora is None:
        raise ConfigError(
            "the model has an adapter, but optimizer.lora is not set: set it to the settings of "
            "the adapter, or merge it with `jaxllm.lora.attach.merge_lora` to train all weights"
        )
    if isinstance(config.data, PreferencesConfig):
        raise ConfigError(
            "data.preferences are compared with the base without its adapter: merge the adapter "
            "that the run starts from into it (`jaxllm convert --merge`), and begin with a new one"
        )
    try:
        check_factors(model, config.optimizer.lora)
    except UserError as error:
        raise ConfigError(str(error)) from None


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


def _check_dtype(model: Model, dtype: str, trained: LoraConfig | None) -> None:
    """Raises ConfigError unless every parameter has the dtype that a run starts from.

    `trained` leaves out those that an adapter has trained in full.
    """
    other_dtypes = {
        variable.get_value().dtype.name
        for name, variable in named_parameters(model).items()
        if variable.get_value().dtype != np.dtype(dtype)
        and not (trained is not None and is_trained(name, trained))
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
