"""Direct preference optimization: answers that were chosen become likelier than rejected ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.models import Decoder, Model
from jaxllm.train.data import Data, PreferencesConfig
from jaxllm.train.loss import DpoConfig, LossConfig
from jaxllm.train.objective import Batch, Loss, Objective, get_objective

from .log_likelihoods import log_likelihoods

Rule = Callable[[Array, Array, DpoConfig], Array]  # (ratios, lengths, config) -> losses, B


def preference_loss(
    model: Decoder, batch: Batch, options: LossConfig, dropout_key: Array | None = None
) -> Loss:
    """The losses of preferences (Rafailov et al., 2023, equation 7), summed over those that count.

    Besides the loss, sums by name: `reward/chosen` and `reward/rejected`, which are beta times the
    log-ratio of the model and the reference, `reward/margin`, their difference, and
    `reward/accuracy`, how many margins are positive.

    Args:
        model: a decoder.
        batch: see `PreferenceRows.take`, with `reference`, float32 (B, 2): the log-likelihoods of
            the answers under the reference.
        options: see `LossConfig`.
        dropout_key: None disables dropout.
    """
    config, counts_B = options.dpo, batch["mask"].astype(jnp.float32)
    found_B2, balance = log_likelihoods(model, batch, options, dropout_key)
    ratios_B2 = found_B2 - batch["reference"]
    lengths_B2 = batch["targets"].sum(-1).astype(jnp.float32)
    loss_B = RULES[config.name](ratios_B2, lengths_B2, config)
    rewards_B2 = config.beta * jax.lax.stop_gradient(ratios_B2)
    margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
    figures = {
        "reward/chosen": rewards_B2[:, 0],
        "reward/rejected": rewards_B2[:, 1],
        "reward/margin": margin_B,
        "reward/accuracy": (margin_B > 0).astype(jnp.float32),
    }
    sums = {name: jnp.sum(value_B * counts_B) for name, value_B in figures.items()}
    return Loss(jnp.sum(loss_B * counts_B), balance, sums=sums)


def _sigmoid(ratios_B2: Array, lengths_B2: Array, config: DpoConfig) -> Array:
    return -jax.nn.log_sigmoid(config.beta * _difference(ratios_B2))


def _robust(ratios_B2: Array, lengths_B2: Array, config: DpoConfig) -> Array:
    """Unbiased where a share of the preferences is flipped (Ray Chowdhury et al., 2024)."""
    flipped, margin_B = config.label_smoothing, config.beta * _difference(ratios_B2)
    kept_B = (1 - flipped) * jax.nn.log_sigmoid(margin_B)
    return -(kept_B - flipped * jax.nn.log_sigmoid(-margin_B)) / (1 - 2 * flipped)


def _hinge(ratios_B2: Array, lengths_B2: Array, config: DpoConfig) -> Array:
    """The loss of SLiC-HF (Zhao et al., 2023) with log-ratios."""
    return jax.nn.relu(1 - config.beta * _difference(ratios_B2))


def _ipo(ratios_B2: Array, lengths_B2: Array, config: DpoConfig) -> Array:
    """Azar et al., 2023, equation 17, with the means over the tokens of each answer."""
    means_B2 = ratios_B2 / jnp.maximum(lengths_B2, 1)
    return jnp.square(_difference(means_B2) - 1 / (2 * config.beta))


def _difference(values_B2: Array) -> Array:
    return values_B2[:, 0] - values_B2[:, 1]


RULES: dict[str, Rule] = {"sigmoid": _sigmoid, "robust": _robust, "hinge": _hinge, "ipo": _ipo}


def find_objective(model: Model, data: Data) -> Objective:
    """Returns the objective of a run: that of its data if these are preferences, or its model's."""
    if isinstance(data, PreferencesConfig):
        return Objective(preference_loss, "nats per preference")
    return get_objective(model)
