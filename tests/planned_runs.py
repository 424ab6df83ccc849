"""Runs and topologies that tests of plans share."""

from tiny import TINY

from jaxllm.config import ExpertsConfig, LayerKind, with_fields
from jaxllm.train import TrainConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.planning.topology import parse_topology

TPU, GPU = parse_topology("v5p:2x2x2"), parse_topology("h100:8")
EXPERTS = with_fields(
    TINY,
    pattern=(LayerKind(mlp="experts"),),
    experts=ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24),
)


def run(model=TINY, *, batch_size=16, seq_len=64, **mesh):
    """Returns a run on a mesh, by default fsdp=8."""
    return TrainConfig(
        output="runs/x",
        steps=10,
        batch_size=batch_size,
        seq_len=seq_len,
        model=model,
        mesh=MeshConfig(**(mesh or {"fsdp": 8})),
        remat="full",
    )
