"""Other ways to run the same training step: on a mesh, recomputing, layer by layer, in parts."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxllm.config import Config, Experts, Remat, TwoStackConfig, with_fields
from jaxllm.models import build_abstract
from jaxllm.params import Params, map_parameters, unstack_name
from jaxllm.sharding import MESH_AXES, partition_spec
from jaxllm.train.config import TrainConfig
from jaxllm.train.step import make_steps

Arrays = dict[str, np.ndarray]  # by the names of parameters, layers one by one
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a training step; by default on one device, everything at once."""

    mesh: tuple[tuple[str, int], ...] = ()  # the axes and their sizes
    remat: Remat = "none"
    scan_layers: bool = True
    accumulate: int = 1
    loss_chunk: int | None = None  # None: all of a sequence's logits at once

    @property
    def name(self) -> str:
        """What it does otherwise, as in `fsdp=4 x tensor=2, accumulate 2`."""
        parts = [" x ".join(f"{axis}={size}" for axis, size in self.mesh) or "one device"]
        if self.remat != "none":
            parts.append(f"remat {self.remat}")
        if not self.scan_layers:
            parts.append("layers one by one")
        if self.accumulate > 1:
            parts.append(f"accumulate {self.accumulate}")
        if self.loss_chunk is not None:
            parts.append(f"loss in chunks of {self.loss_chunk}")
        return ", ".join(parts)


def variants(config: TrainConfig, num_devices: int) -> list[Variant]:
    """Every layout of so many devices, and every other change on one device and on a mesh of many.

    The mesh is that of the config, or the one that splits the most things.
    """
    assert config.model is not None, "filled in by the caller"
    axes = [axis for axis in MESH_AXES if axis != "expert" or find_experts(config.model)]
    meshes = list(layouts(axes, num_devices)) if num_devices > 1 else []
    own = tuple((axis, n) for axis in axes if (n := getattr(config.mesh, axis)) > 1)
    mixed = own if own in meshes else max(meshes, key=len, default=())
    changes: list[dict[str, Any]] = [
        *({"remat": remat} for remat in get_args(Remat) if remat != "none"),
        {"scan_layers": False},
        *({"accumulate": count} for count in _parts(config)),
        {"loss_chunk": min(config.loss_chunk, config.seq_len // 3 + 1)},
    ]
    places = [(), mixed] if mixed else [()]
    return [
        *(Variant(mesh=mesh) for mesh in meshes),
        *(Variant(mesh=mesh, **change) for mesh in places for change in changes),
    ]


def layouts(axes: list[str], num_devices: int) -> Iterator[tuple[tuple[str, int], ...]]:
    """Every way to deal the devices out to the axes, those to few axes first."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    found = [
        tuple((axis, n) for axis, n in zip(axes, sizes, strict=True) if n > 1)
        for sizes in itertools.product(divisors, repeat=len(axes))
        if math.prod(sizes) == num_devices
    ]
    yield from sorted(found, key=len)


def _parts(config: TrainConfig) -> list[int]:
    """Into how many microbatches: two, and what the config says."""
    counts = {2, config.accumulate} - {1}
    return sorted(count for count in counts if config.batch_size % count == 0)


def find_experts(config: Config) -> Experts | None:
    """Those of a model's stacks, which have the same."""
    stack = config.decoder if isinstance(config, TwoStackConfig) else config
    return stack.experts


class Step(NamedTuple):
    """What a training step did."""

    loss: float
    grad_norm: float
    gradient: Arrays  # clipped, times 1 - b1: the first moment
    square: Arrays  # the second moment
    update: Arrays
    before: Arrays  # the parameters


class Program:
    """The very program that `train` runs for a step, in a variant."""

    def __init__(self, config: TrainConfig, variant: Variant):
        assert config.model is not None, "filled in by the caller"
        form = {"remat": variant.remat, "scan_layers": variant.scan_layers}
        chunk = variant.loss_chunk or config.seq_len
        run = dataclasses.replace(config, accumulate=variant.accumulate, loss_chunk=chunk)
        self._model = build_abstract(with_fields(config.model, **form))
        self._mesh = submesh(dict(variant.mesh))
        with jax.set_mesh(self._mesh):
            self._steps = make_steps(run, self._model, self._mesh)

    def __call__(self, weights: Arrays, batch: Batch) -> Step:
        """The first step of training from these weights on this batch."""

        def stacked(name: str, _: Any) -> np.ndarray:
            parts = [weights[own] for own, _ in unstack_name(name)]
            return parts[0] if name in weights else np.stack(parts)

        params = map_parameters(self._model, stacked)
        places = jax.tree.map(lambda x: x.sharding, self._steps.abstract_state.params)
        with jax.default_matmul_precision("highest"), jax.set_mesh(self._mesh):
            # Copies, since the first state is given away.
            params = jax.device_put(jax.tree.map(jnp.array, params), places)
            state, metrics = self._steps.train(self._steps.init(params), on_mesh(batch, self._mesh))
            after = by_name(state.params)
            mu, nu = (by_name(optax.tree.get(state.optimizer, tree)) for tree in ("mu", "nu"))
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        update = {name: after[name] - weights[name] for name in after}
        return Step(loss, grad_norm, mu, nu, update, weights)


def by_name(params: Params) -> Arrays:
    """Parameters, or what is laid out as they are, by their names in single layers."""
    found = {}
    for path, x in nnx.traversals.flatten_mapping(jax.device_get(params)).items():
        for name, layer in unstack_name(".".join(map(str, path))):
            found[name] = np.asarray(x if layer is None else x[layer])
    return found


def submesh(sizes: Mapping[str, int]) -> Mesh:
    """A mesh over as many of the devices as it needs."""
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    devices = jax.devices()[: math.prod(shape)]
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)


def on_mesh(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """The batch, its rows dealt out to the devices."""
    return {
        name: jax.device_put(
            x, NamedSharding(mesh, PartitionSpec(*partition_spec("B", x.shape[:1], mesh.shape)))
        )
        for name, x in batch.items()
    }
