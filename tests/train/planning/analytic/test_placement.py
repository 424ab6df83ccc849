"""Placements from partition specs."""

from jax.sharding import PartitionSpec

from jaxllm.train.planning.analytic.placement import active, axes_by_dim


def test_axes_of_specs():
    spec = PartitionSpec(("data", "fsdp"), None, "tensor", PartitionSpec.UNCONSTRAINED)
    axes = axes_by_dim(spec, 5)
    assert axes == (("data", "fsdp"), (), ("tensor",), (), ())
    assert active(axes, {"data": 1, "fsdp": 2, "tensor": 1}) == (("fsdp",), (), (), (), ())
