"""Mutations of training: a wrong loss and wrong optimizers."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from jaxllm.interop.parity.execution import jax_train
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.models.decoder import Decoder
from jaxllm.params import map_parameters

from .mutation import Mutation

RECIPE = Recipe(steps=3)


def adamw(
    model: Decoder,
    rate: Callable[[Any], Any] = RECIPE.rate,
    clip: float = RECIPE.clip_norm,
    decays: str = "kernel embedding",
    **options: float,
) -> optax.GradientTransformation:
    """Builds the recipe's AdamW with some settings changed."""
    settings = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, **options}
    mask = map_parameters(model, lambda name, _: name.endswith(tuple(decays.split())))
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(rate, mask=mask, **settings))


def optimized(name: str, level: str, step: str, **changes: Any) -> Mutation:
    """A mutation that trains with an AdamW that differs in one setting."""
    return Mutation(
        name=name,
        options=lambda model: {"optimizer": adamw(model, **changes)},
        signs=lambda config: {level: step},
    )


def shifted_loss(params, bind, given):
    """A loss whose targets are not shifted: every token predicts itself."""
    tokens_BT = given["target"]
    log_probs_BTV = jax.nn.log_softmax(bind(params)(tokens_BT).logits)
    return -jnp.take_along_axis(log_probs_BTV, tokens_BT[..., None], axis=-1).mean()


TRAINING_BUGS = (
    Mutation(
        name="label shift",
        patch=lambda config: mock.patch.object(jax_train, "mean_loss", shifted_loss),
        signs=lambda config: {"gradients": "batch loss"},
    ),
    optimized("weight decay on norms", "step", "*norm update", decays="kernel embedding scale"),
    optimized("no weight decay on embeddings", "step", "embed* update", decays="kernel"),
    optimized("schedule off by one", "step", "* update", rate=lambda step: RECIPE.rate(step + 1)),
    optimized("schedule stands still", "curve", "step 2", rate=lambda step: RECIPE.rate(0)),
    optimized("adam eps inside the root", "step", "* update", eps=0.0, eps_root=1e-8),
    optimized("adam eps x 100", "step", "* update", eps=1e-6),
    optimized("b2 of 0.999", "step", "* v", b2=0.999),
    optimized("gradients unclipped", "step", "* m", clip=1e9),
)
