"""The analytic plan: traces the step of a run and prices it on a mesh, without a compiler."""

from typing import NamedTuple

import jax
import numpy as np

from jaxllm.distributed.devices import Device
from jaxllm.train.config import TrainConfig
from jaxllm.train.planning.collectives import Collective
from jaxllm.train.planning.step_program import (
    abstract_mesh,
    make_step_program,
    mesh_shape,
    trace_step,
)

from .attention import mean_keys_seen
from .matmuls import matmul_flops, matmul_seconds
from .memory import Liveness, vector_traffic
from .placement import place_inputs
from .program import flatten, local_bytes
from .propagation import Propagation, list_collectives


class Priced(NamedTuple):
    """Memory, collectives, FLOPs and HBM traffic of a step on one device."""

    state: float  # bytes of parameters, optimizer state and the batch
    peak: float  # bytes at the fullest moment, the state included
    arrays: tuple[tuple[str, int], ...]  # the largest temporaries at that moment, in bytes
    collectives: tuple[Collective, ...]
    flops: float  # of matmuls, recomputed ones included
    matmul_seconds: float  # at the peaks of the device
    traffic: float  # bytes of HBM that are read and written beside matmuls


def price_step(config: TrainConfig, device: Device) -> Priced:
    """Prices the step of a run.

    Args:
        config: the run.
        device: one of those that it runs on.
    """
    shape = mesh_shape(config)
    jaxpr, steps, batch = trace_step(config, abstract_mesh(shape, device.platform))
    region = flatten(jaxpr, device.platform)
    leaves = jax.tree.leaves((steps.abstract_state, batch))
    place_inputs(region, [leaf.sharding for leaf in leaves])
    count = len(jax.tree.leaves(steps.abstract_state.params))
    split = Propagation(shape, region.inputs[:count]).run(region)
    assert config.model is not None, "estimate_cost checks this"
    keys_seen = mean_keys_seen(config.model, config.seq_len)
    state = sum(local_bytes(value, shape) for value in split.inputs)
    temporaries, arrays = Liveness(split, shape, is_donated=True).peak()
    return Priced(
        state,
        state + temporaries,
        tuple(arrays.most_common(8)),
        tuple(list_collectives(split)),
        matmul_flops(split, shape, keys_seen),
        matmul_seconds(split, shape, device, keys_seen),
        vector_traffic(split, shape),
    )


def state_bytes(config: TrainConfig) -> dict[str, int]:
    """Returns the bytes of parameters, gradients, optimizer state and batch on each device."""
    steps, batch = make_step_program(config, abstract_mesh(mesh_shape(config)))
    state = steps.abstract_state

    def held(tree: object) -> int:
        return sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    params = held(state.params)
    return {
        "parameters": params,
        "gradients": params,  # in the parameters' dtype and shardings
        "optimizer": held(state.optimizer),
        "batch": held(batch),
    }
