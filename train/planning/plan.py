"""The plan of a run on devices: memory, collectives, FLOPs and the time of a step."""

import math
from typing import Any, NamedTuple

from jaxllm.config import Config
from jaxllm.models import build_abstract
from jaxllm.train.config import TrainConfig
from jaxllm.train.cost import RunCost, estimate_cost
from jaxllm.train.speed.model_flops import flops_per_example

from .analytic.step import price_step, state_bytes
from .collectives import Collective, moved_by_axes
from .compiled.compiler import Compiled
from .minimum import minimum_bytes
from .step_program import check_fits_topology, mesh_shape
from .topology import Topology


class Plan(NamedTuple):
    """Memory, collectives, FLOPs and time of one step, for each device of a topology."""

    cost: RunCost
    topology: Topology
    mesh: dict[str, int]
    source: str  # "analytic model" or "compiler"
    parameters: int  # bytes, as are the next four
    gradients: int
    optimizer: int
    batch: int
    peak: int
    collectives: tuple[Collective, ...]
    minimum: dict[tuple[str, ...], float]  # bytes that a device must receive, by mesh axes
    model_flops: float  # of a step, without what is recomputed, over all devices
    executed_flops: float  # the same with it
    matmul_seconds: float  # of one device, at its peaks
    traffic: float  # bytes of HBM beside matmuls
    step_tokens: int
    largest: tuple[tuple[str, float], ...]  # arrays and their bytes

    @property
    def activations(self) -> int:
        """Bytes of activations and other temporaries at the fullest moment."""
        held = self.parameters + self.gradients + self.optimizer + self.batch
        return max(0, self.peak - held)

    @property
    def spare(self) -> int:
        """Bytes of HBM that stay free; negative if the step does not fit."""
        return self.topology.device.memory - self.peak

    @property
    def moved(self) -> float:
        """Bytes that a device receives in a step."""
        return sum(one.moved for one in self.collectives)

    @property
    def compute_seconds(self) -> float:
        """Matmuls at the peaks of the device, then the rest at the bandwidth of HBM."""
        return self.matmul_seconds + self.traffic / self.topology.device.hbm

    @property
    def network_seconds(self) -> float:
        """Collectives one after the other, each at the bandwidth of its mesh axes."""
        return sum(
            one.moved / self.topology.bandwidth(one.axes, self.mesh) for one in self.collectives
        )

    @property
    def step_seconds(self) -> float:
        """The time of a step whose collectives run entirely beside its computation."""
        return max(self.compute_seconds, self.network_seconds)

    @property
    def serial_seconds(self) -> float:
        """The time of a step whose collectives run entirely after its computation."""
        return self.compute_seconds + self.network_seconds

    def mfu(self, seconds: float) -> float:
        """Model FLOPs utilization of a step that takes this long."""
        return self.model_flops / (seconds * self.topology.size * self.topology.device.flops)

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as plain data."""
        moved = moved_by_axes(self.collectives)
        return {
            **self.cost._asdict(),
            "topology": str(self.topology),
            "mesh": self.mesh,
            "source": self.source,
            "memory": {
                "parameters": self.parameters,
                "gradients": self.gradients,
                "optimizer": self.optimizer,
                "batch": self.batch,
                "activations": self.activations,
                "peak": self.peak,
                "device": self.topology.device.memory,
                "fits": self.spare >= 0,
            },
            "collectives": [one._asdict() for one in self.collectives],
            "moved": {" x ".join(axes): size for axes, size in moved.items()},
            "minimum": {" x ".join(axes): size for axes, size in self.minimum.items()},
            "model_flops": self.model_flops,
            "executed_flops": self.executed_flops,
            "matmul_seconds": self.matmul_seconds,
            "traffic": self.traffic,
            "step_seconds": {"overlapped": self.step_seconds, "serial": self.serial_seconds},
            "tokens_per_second": self.step_tokens / self.step_seconds,
            "mfu": {
                "overlapped": self.mfu(self.step_seconds),
                "serial": self.mfu(self.serial_seconds),
            },
            "largest_arrays": [list(one) for one in self.largest],
        }


def make_plan(config: TrainConfig, topology: Topology, compiled: Compiled | None = None) -> Plan:
    """Plans a run on a topology.

    Args:
        config: the run, with a model.
        topology: the devices.
        compiled: what the compiler says of memory and collectives; by default an analytic model
            says it. FLOPs are counted in the traced step either way.

    Raises:
        UserError: the config has no model.
        ConfigError: the mesh or the batch does not fit the devices.
    """
    cost = estimate_cost(config)
    assert config.model is not None, "estimate_cost checks this"
    check_fits_topology(config, topology)
    shape = mesh_shape(config)
    priced = price_step(config, topology.device)
    peak, collectives, traffic = priced.peak, priced.collectives, priced.traffic
    largest: tuple[tuple[str, float], ...] = priced.arrays
    source = "analytic model"
    if compiled is not None:
        peak, source = compiled.peak, "compiler (memory only)"
        largest = tuple((text, size) for text, size, _ in compiled.largest_arrays)
        if compiled.collectives:  # a program that does not fit is not compiled to its end
            collectives, traffic = compiled.collectives, compiled.traffic
            source = "compiler"
    return Plan(
        cost,
        topology,
        shape,
        source,
        **state_bytes(config),
        peak=math.ceil(peak),
        collectives=collectives,
        minimum=minimum_bytes(config, config.model, shape),
        model_flops=_step_flops(config, config.model),
        executed_flops=priced.flops * topology.size,
        matmul_seconds=priced.matmul_seconds,
        traffic=traffic,
        step_tokens=config.batch_size * config.seq_len,
        largest=largest,
    )


def _step_flops(config: TrainConfig, model: Config) -> float:
    return config.batch_size * flops_per_example(build_abstract(model), config.seq_len)
