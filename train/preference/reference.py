"""The reference of DPO: the model before training, and how likely it finds the answers."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array

from jaxllm.lora.attach import FACTORS, without_factors
from jaxllm.lora.parts import join
from jaxllm.models import Model
from jaxllm.params import Params
from jaxllm.train.config import TrainConfig
from jaxllm.train.data import PreferencesConfig
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import Batch

from .log_likelihoods import log_likelihoods

NO_PARAMS: Params = {}


def keeps_reference(config: TrainConfig) -> bool:
    """Whether a run computes with the reference at each step, and so holds its parameters."""
    is_preference = isinstance(config.data, PreferencesConfig)
    return is_preference and config.loss.dpo.reference == "each_step"


def needs_start(config: TrainConfig) -> bool:
    """Whether a resumed run needs the weights it began with, which no checkpoint of it holds."""
    return config.optimizer.lora is not None or keeps_reference(config)


def work_per_row(config: TrainConfig) -> tuple[int, float]:
    """Returns the sequences of a row of a batch, and the training steps of one that it costs.

    A forward pass of the reference costs a third of a step.
    """
    if not isinstance(config.data, PreferencesConfig):
        return 1, 1.0
    return 2, 2 * (4 / 3 if keeps_reference(config) else 1)


def reference_params(trained: Params, config: TrainConfig) -> Params:
    """Returns those of the trained parameters, or of a tree like them, that the reference has.

    With LoRA these are what is trained in full: the factors are left out, and the rest is frozen.
    """
    if not keeps_reference(config):
        return NO_PARAMS
    flat = nnx.traversals.flatten_mapping(trained).items()
    kept = {path: x for path, x in flat if not ".".join(map(str, path)).endswith(FACTORS)}
    return nnx.traversals.unflatten_mapping(kept)


def with_reference(
    bind: Callable[[Params], Model],
    weights: Params,
    reference: Params,
    batch: Batch,
    options: LossConfig,
) -> Batch:
    """Returns the batch with `reference`, float32 (B, 2), unless it has it.

    Args:
        bind: makes a model of all parameters.
        weights: of the model that is trained.
        reference: those of the reference that are other numbers.
        batch: see `PreferenceRows.take`.
        options: of the cross-entropy.
    """
    if "reference" in batch:
        return batch
    model: Any = without_factors(bind(join(weights, reference)))
    found_B2: Array = jax.lax.stop_gradient(log_likelihoods(model, batch, options)[0])
    return {**batch, "reference": found_B2}
