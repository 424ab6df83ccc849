"""Variants of a training step: meshes, rematerialization, unscanned layers, microbatches."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jaxllm.config import (
    AttentionKernel,
    Config,
    ExpertsConfig,
    Remat,
    stacks_of,
    with_fields,
)
from jaxllm.layers.attention.kernels.choice import KERNELS
from jaxllm.models import build_abstract
from jaxllm.params import Params, map_parameters, unstack_name
from jaxllm.sharding import MESH_AXES, platform
from jaxllm.train.config import TrainConfig
from jaxllm.train.data.placement import on_mesh
from jaxllm.train.mesh import layouts, make_mesh
from jaxllm.train.optimizers.config import BadStepsConfig, OptimizerConfig
from jaxllm.train.step import Steps, TrainState, make_steps

Arrays = dict[str, np.ndarray]  # by parameter name, layers unstacked
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a training step; by default on one device, without any splitting."""

    mesh: tuple[tuple[str, int], ...] = ()  # (axis, size) pairs
    remat: Remat = "none"
    kernel: AttentionKernel = "auto"  # of attention; with float32 activations this is none
    scan_layers: bool = True
    sequence_parallel: bool = False  # on meshes with `tensor`
    accumulate: int = 1  # number of microbatches
    loss_chunk: int | None = None  # tokens per device in a chunk; None: all logits at once

    @property
    def name(self) -> str:
        """The settings that differ from the default, as in `fsdp=4 x tensor=2, accumulate 2`."""
        parts = [" x ".join(f"{axis}={size}" for axis, size in self.mesh) or "one device"]
        if self.remat != "none":
            parts.append(f"remat {self.remat}")
        if self.kernel != "auto":
            parts.append(f"attention by {self.kernel}")
        if not self.scan_layers:
            parts.append("layers one by one")
        if self.sequence_parallel:
            parts.append("sequence parallel")
        if self.accumulate > 1:
            parts.append(f"accumulate {self.accumulate}")
        if self.loss_chunk is not None:
            parts.append(f"loss in chunks of {self.loss_chunk}")
        return ", ".join(parts)


def variants(config: TrainConfig, num_devices: int) -> list[Variant]:
    """Lists the variants to test: every mesh layout, then every other change alone and on a mesh.

    Sequence parallelism is tested there, and where all devices are along `tensor`.

    The mesh for the other changes is that of the config if it uses `num_devices`, otherwise the
    one with the most axes.

    Args:
        config: the run, with its model filled in.
        num_devices: the number of devices that every mesh uses.
    """
    assert config.model is not None, "the caller fills in the model"
    axes = [axis for axis in MESH_AXES if axis != "expert" or find_experts(config.model)]
    meshes = list(layouts(axes, num_devices)) if num_devices > 1 else []
    configured = tuple((axis, n) for axis in axes if (n := getattr(config.mesh, axis)) > 1)
    mixed = configured if configured in meshes else max(meshes, key=len, default=())
    changes: list[dict[str, Any]] = [
        *({"remat": remat} for remat in get_args(Remat) if remat != "none"),
        *({"kernel": kernel} for kernel in _kernels(config.model)),
        {"scan_layers": False},
        *({"accumulate": count} for count in _microbatch_counts(config)),
        {"loss_chunk": min(config.loss.chunk_tokens, config.seq_len // 3 + 1)},
    ]
    places = [(), mixed] if mixed else [()]
    return [
        *(Variant(mesh=mesh) for mesh in meshes),
        *(Variant(mesh=mesh, **change) for mesh in places for change in changes),
        *(
            Variant(mesh=mesh, sequence_parallel=True)
            for mesh in dict.fromkeys((mixed, (("tensor", num_devices),)))
            if "tensor" in dict(mesh) and mesh in meshes
        ),
    ]


def _kernels(config: Config) -> list[AttentionKernel]:
    """The kernels of attention that compute this model on these devices; on CPUs interpreted."""
    stacks = stacks_of(config)
    if any(stack.positions.kind in ("alibi", "relative", "distance") for stack in stacks):
        return []  # kernels have no bias of the scores
    here = platform()
    return [name for name, kernel in KERNELS.items() if here in (kernel.platform, "cpu")]


def _microbatch_counts(config: TrainConfig) -> list[int]:
    """The numbers of microbatches to test: 2 and the config's, if they divide the batch."""
    counts = {2, config.accumulate} - {1}
    return sorted(count for count in counts if config.batch_size % count == 0)


def find_experts(config: Config) -> ExpertsConfig | None:
    """Returns the experts config of a model, which is the same for both stacks, or None."""
    return stacks_of(config)[-1].experts


class Step(NamedTuple):
    """The results of a training step."""

    loss: float
    grad_norm: float
    first_moment: Arrays  # the clipped gradient times 1 - b1
    second_moment: Arrays
    update: Arrays  # parameters after the step minus before
    before: Arrays  # parameters before the step


class Program:
    """The same compiled step that `train` runs, in a variant."""

    def __init__(self, config: TrainConfig, variant: Variant):
        assert config.model is not None, "the caller fills in the model"
        changes = {
            "attention.kernel": variant.kernel,
            "norms.sequence_parallel": variant.sequence_parallel,
        }
        overrides = {"remat": variant.remat, "scan_layers": variant.scan_layers}
        chunk = variant.loss_chunk or config.seq_len * config.batch_size
        run = dataclasses.replace(
            config,
            accumulate=variant.accumulate,
            loss=dataclasses.replace(config.loss, chunk_tokens=chunk),
        )
        self._model = build_abstract(with_fields(config.model, changes, **overrides))
        self._batch_size = config.batch_size
        self._mesh = make_mesh(devices=jax.devices(), **dict(variant.mesh))
        # Moments tell gradients apart, so AdamW takes a step too if the run's optimizer is another.
        own = plain_optimizer(run.optimizer)
        adamw = dataclasses.replace(own, name="adamw")
        with jax.set_mesh(self._mesh):
            self._steps, self._own = (
                make_steps(dataclasses.replace(run, optimizer=one), self._model, self._mesh)
                for one in (adamw, own)
            )
        self._is_adamw = own == adamw

    def __call__(self, weights: Arrays, batch: Batch) -> Step:
        """Takes the first training step from these weights on this batch."""

        def stack(name: str, _: Any) -> np.ndarray:
            layers = [weights[layer_name] for layer_name, _ in unstack_name(name)]
            return layers[0] if name in weights else np.stack(layers)

        params = map_parameters(self._model, stack)
        shardings = jax.tree.map(lambda x: x.sharding, self._steps.abstract_state.params)

        def train(steps: Steps) -> tuple[TrainState, dict[str, Array]]:
            # Copied, since the first state is donated.
            placed = jax.device_put(jax.tree.map(jnp.array, params), shardings)
            return steps.train(steps.init(placed), batch_on_mesh)

        with jax.default_matmul_precision("highest"), jax.set_mesh(self._mesh):
            batch_on_mesh = on_mesh(batch, self._mesh, self._batch_size)
            state, metrics = train(self._steps)
            mu, nu = (by_name(optax.tree.get(state.optimizer, tree)) for tree in ("mu", "nu"))
            after = by_name((state if self._is_adamw else train(self._own)[0]).params)
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        update = {name: after[name] - weights[name] for name in after}
        return Step(loss, grad_norm, mu, nu, update, weights)


def plain_optimizer(optimizer: OptimizerConfig) -> OptimizerConfig:
    """Returns the rule of an optimizer for all parameters in float32, so that rounding is small."""
    return dataclasses.replace(
        optimizer, lora=None, precision="float32", ema=None, bad_steps=BadStepsConfig(), groups=()
    )


def by_name(params: Params) -> Arrays:
    """Flattens parameters, or a tree like them, to NumPy arrays by name with layers unstacked."""
    found = {}
    for path, x in nnx.traversals.flatten_mapping(jax.device_get(params)).items():
        for name, layer in unstack_name(".".join(map(str, path))):
            found[name] = np.asarray(x if layer is None else x[layer])
    return found
