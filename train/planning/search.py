"""Search for a layout: tries meshes, rematerialization and microbatches, and ranks what fits."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import NamedTuple, get_args

from jaxllm.config import Remat, stacks_of
from jaxllm.errors import UserError
from jaxllm.sharding import MESH_AXES
from jaxllm.train.config import ConfigError, TrainConfig
from jaxllm.train.cost import bytes_per_device
from jaxllm.train.mesh import layouts
from jaxllm.train.setup import check_rows

from .minimum import minimum_bytes
from .plan import Plan, make_plan
from .step_program import mesh_shape
from .topology import Topology

log = logging.getLogger("jaxllm")

MOST_MESHES = 6  # meshes that are traced: those that must exchange the least
REMATS = sorted(get_args(Remat), key=lambda name: name != "full")  # "full" needs the least memory


class Candidate(NamedTuple):
    """A layout that was tried, and its plan."""

    config: TrainConfig
    plan: Plan

    @property
    def options(self) -> str:
        """The overrides that choose this layout."""
        sizes = mesh_shape(self.config)
        mesh = (f"--mesh.{axis} {size}" for axis, size in sizes.items())
        return " ".join(
            [*mesh, f"--remat {self.config.remat}", f"--accumulate {self.config.accumulate}"]
        )


def search(config: TrainConfig, topology: Topology) -> list[Candidate]:
    """Returns layouts of a run that fit the devices, the fastest first, by the analytic model.

    Of the meshes that can hold the state, those are traced that must exchange the least. Each is
    tried with every choice of rematerialization, and in more microbatches where it does not fit.

    Raises:
        UserError: no mesh of this topology can hold the state or divide the batch.
    """
    meshes = find_meshes(config, topology)
    if not meshes:
        raise UserError(
            f"no mesh over {topology} divides batch_size={config.batch_size} and holds the state "
            "of the model; use more devices, or a batch that they divide"
        )
    found: list[Candidate] = []
    for number, mesh in enumerate(meshes, 1):
        named = " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1)
        log.info("%d of %d meshes: %s", number, len(meshes), named or "one device")
        sized = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **mesh))
        found += _try_settings(sized, topology)
    return sorted(found, key=lambda one: (one.plan.step_seconds, one.plan.serial_seconds))


def find_meshes(config: TrainConfig, topology: Topology) -> list[dict[str, int]]:
    """Returns meshes that can hold the state of a run, those that must exchange the least first.

    Their axis `sequence` is that of the run: what splitting sequences moves is not in the least.
    """
    model = config.model
    assert model is not None, "checked by the caller"
    stack = stacks_of(model)[-1]
    experts = 1 if stack.experts is None else stack.experts.num_experts
    fixed = {"sequence"} if experts > 1 else {"sequence", "expert"}
    axes = [axis for axis in MESH_AXES if axis not in fixed]
    ranked, sequence = [], config.mesh.sequence
    for pairs in layouts(axes, topology.size // sequence):
        mesh = {**dict.fromkeys(MESH_AXES, 1), **dict(pairs), "sequence": sequence}
        tensor = mesh["tensor"]
        if (
            experts % mesh["expert"]
            or stack.num_heads % tensor
            or tensor > topology.device.per_host
        ):
            continue
        try:
            check_rows(config, mesh, accumulate=1)
        except ConfigError:
            continue
        held = bytes_per_device(config, mesh)
        if held > topology.device.memory:
            continue
        moved = minimum_bytes(dataclasses.replace(config, accumulate=1), model, mesh)
        seconds = sum(size / topology.bandwidth(axes, mesh) for axes, size in moved.items())
        ranked.append((seconds, held, mesh))
    ranked.sort(key=lambda entry: entry[:2])
    return [mesh for _, _, mesh in ranked[:MOST_MESHES]]


def _try_settings(config: TrainConfig, topology: Topology) -> Iterator[Candidate]:
    """Yields what fits on one mesh: for each remat, the fewest microbatches."""
    accumulate = 1
    for remat in REMATS:
        while config.batch_size % accumulate == 0 and accumulate <= 64:
            tried = dataclasses.replace(config, remat=remat, accumulate=accumulate)
            try:
                plan = make_plan(tried, topology)
            except ConfigError:  # the microbatch is smaller than the mesh
                break
            if plan.spare >= 0:
                yield Candidate(tried, plan)
                break
            accumulate *= 2
            if _state(plan) > topology.device.memory:
                return


def _state(plan: Plan) -> int:
    return plan.parameters + plan.gradients + plan.optimizer
