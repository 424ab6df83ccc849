"""Placements from partition specs."""

from jax.sharding import PartitionSpec

from jaxllm.train.planning.analytic.placement import active, spec_axes


def test_axes_of_specs():
    spec = PartitionSpec(("data", "fsdp"), None, "tensor", PartitionSpec.UNCONSTRAINED)
    axes = spec_axes(spec, 5)
    assert axes == (("data", "fsdp"), (), ("tensor",), (), ())
    assert active(axes, {"data": 1, "fsdp": 2, "tensor": 1}) == (("fsdp",), (), (), (), ())
