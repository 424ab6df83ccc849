"""Trajectories of our optimizers beside PyTorch's, from the same parameters and gradients."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import torch
from flax import nnx
from tiny import random_model, relative_l2

from jaxllm.params import named_parameters, split, unstack_name
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.optimizers.matrices import shape_of
from jaxllm.train.optimizers.optimizer import make_optimizer

STEPS = 100


def unstacked(model: Any, params: Any) -> dict[str, np.ndarray]:
    """The parameters by name as PyTorch has them: one per layer, kernels as matrices (out, in)."""
    variables, found = named_parameters(model), {}
    for path, x in nnx.traversals.flatten_mapping(jax.device_get(params)).items():
        stacked = ".".join(map(str, path))
        shape = shape_of(variables[stacked])
        for name, layer in unstack_name(stacked):
            own = np.asarray(x if layer is None else x[layer])
            if shape.is_matrix:
                start = 0 if layer is None else 1
                rows = [place - start for place in shape.rows]
                columns = [place - start for place in shape.columns]
                size = int(np.prod([own.shape[place] for place in rows]))
                own = own.transpose(*rows, *columns).reshape(size, -1).T
            found[name] = own
    return found


def compare(
    config: OptimizerConfig,
    make: Callable[[dict[str, torch.nn.Parameter]], list[torch.optim.Optimizer]],
    limit: float,
) -> None:
    """Checks every parameter now and then over 100 steps on the same random gradients.

    Args:
        config: ours.
        make: makes PyTorch's optimizers for parameters by name.
        limit: of the relative L2 error.
    """
    model = random_model(num_layers=2)
    _, params = split(model)
    optimizer = make_optimizer(config, STEPS, model)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    start = unstacked(model, params)
    theirs = {name: torch.nn.Parameter(torch.tensor(x.copy())) for name, x in start.items()}
    torch_optimizers, rng = make(theirs), np.random.default_rng(0)
    for step in range(STEPS):
        drawn = jax.tree.map(
            lambda x: 0.1 * rng.standard_normal(x.shape, np.float32) + 0.1 * x, params
        )
        for name, gradient in unstacked(model, drawn).items():
            theirs[name].grad = torch.tensor(gradient.copy())
        updates, state = update(drawn, state, params)
        params = optax.apply_updates(params, updates)
        for one in torch_optimizers:
            one.step()
        if step % 20 in (0, 19):
            for name, ours in unstacked(model, params).items():
                error = relative_l2(ours, theirs[name].detach().numpy())
                assert error < limit, (step, name, error)
    for name, ours in unstacked(model, params).items():
        assert relative_l2(ours, start[name]) > 0.05, name


def decayed(theirs: dict[str, torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The groups of PyTorch's parameters: norms do not decay."""
    groups: dict[bool, list] = {True: [], False: []}
    for name, parameter in theirs.items():
        groups[name.endswith((".kernel", ".embedding"))].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
