"""Gradients of kernels that devices sum in bfloat16: what that rounds, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_of, relative_l2

from jaxllm.config import ExpertsConfig, LayerKind, NumericsConfig, with_fields
from jaxllm.layers.linear import project
from jaxllm.params import map_parameters, named_parameters, parameter_shardings, split
from jaxllm.sharding import constrain, named_sharding
from jaxllm.train import make_mesh
from jaxllm.train.data.placement import on_mesh
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss
from jaxllm.train.planning.compiled.hlo import parse
from jaxllm.train.planning.compiled.hlo_collectives import read_collectives

ROWS, T = 8, 16
MODEL = with_fields(
    TINY,
    num_layers=2,
    remat="full",
    pattern=(LayerKind(mlp="experts"),),
    experts=ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24),
)
BATCH = {
    "tokens": np.random.default_rng(0).integers(0, TINY.vocab_size, (ROWS, T + 1)),
    "mask": np.ones((ROWS, T), np.int32),
}


def _run(function, args, folder, mesh):
    """Runs a function on a mesh; returns the result, and the bytes that devices sum by dtype.

    The bytes are those of the partitioned program: XLA for CPUs sums in float32 in the end.
    """
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    with jax.set_mesh(mesh):
        found = jax.jit(function).lower(*args).compile(options)(*args)
    (text,) = (path.read_text() for path in folder.glob("*after_spmd-partitioning*.txt"))
    summed = dict.fromkeys(("f32", "bf16"), 0.0)
    for one in read_collectives(parse(text), dict(mesh.shape)):
        if one.kind in ("all-reduce", "reduce-scatter") and one.axes != ("tensor",):
            summed[one.dtype] += one.moved
    return found, summed


@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
def test_devices_sum_the_gradient_of_a_projection_in_its_dtype(
    reduce_dtype, tmp_path, really_compiling
):
    mesh, rng = make_mesh(data=2, fsdp=4), np.random.default_rng(0)
    shapes = {"BTD": (ROWS, T, 32), "DF": (32, 24), "BTF": (ROWS, T, 24)}
    x, kernel, dy = (
        jax.device_put(
            rng.standard_normal(shape).astype(np.float32 if dims == "DF" else jnp.bfloat16),
            named_sharding(dims, shape, mesh),
        )
        for dims, shape in shapes.items()
    )

    def gradient(kernel, x, dy):
        products = lambda kernel: project("BTD,DF->BTF", x, kernel, reduce_dtype)  # noqa: E731
        (dkernel,) = jax.vjp(products, kernel)[1](dy.astype(jnp.float32))
        return constrain(dkernel, "DF")

    found, summed = _run(gradient, (kernel, x, dy), tmp_path, mesh)
    parts = np.einsum("bgtd,bgtf->bdf", *(_parts(array) for array in (x, dy)))
    assert found.dtype == np.float32
    other, expected = {"float32": "bf16", "bfloat16": "f32"}[reduce_dtype], parts.sum(0)
    assert summed[other] == 0 < sum(summed.values())
    if reduce_dtype == "float32":
        assert relative_l2(found, expected) < 1e-6
    else:  # parts are rounded to 8 bits, their sums over one axis, and those over the other
        bound = 2 * 2**-8 * np.abs(parts).sum(0) + 2**-8 * np.abs(expected)
        assert (np.abs(found - expected) <= bound).all()
        assert relative_l2(found, expected) > 2**-10


def _parts(array):
    """Splits rows by the eight devices that have them."""
    return np.asarray(array, np.float64).reshape(8, ROWS // 8, *array.shape[1:])


def _gradients(reduce_dtype, sizes, folder):
    """Returns the gradients of a model by name, and the bytes that devices sum by dtype."""
    numerics = NumericsConfig(dtype="bfloat16", reduce_dtype=reduce_dtype)
    model, mesh = random_of(with_fields(MODEL, numerics=numerics)), make_mesh(**sizes)
    bind, params = split(model)
    places = parameter_shardings(model, mesh)

    def loss(params, batch):
        return next_token_loss(bind(params), batch, LossConfig(), None)[0]

    with jax.set_mesh(mesh):
        params = jax.device_put(params, map_parameters(model, lambda name, _: places[name]))
        given = params, on_mesh(BATCH, mesh, ROWS)
    found, summed = _run(jax.grad(loss), given, folder, mesh)
    named = named_parameters(bind(found)).items()
    return {name: np.asarray(variable.get_value()) for name, variable in named}, summed


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "expert": 2}, {"fsdp": 4, "tensor": 2}])
def test_kernels_are_rounded_where_devices_sum_them(sizes, tmp_path, really_compiling):
    exact, before = _gradients("float32", sizes, tmp_path / "float32")
    ours, after = _gradients("bfloat16", sizes, tmp_path / "bfloat16")
    for name, expected in exact.items():
        assert ours[name].dtype == np.float32
        if name.endswith("kernel"):  # a number that is rounded to 8 bits loses at most 2^-8
            assert 2**-10 < relative_l2(ours[name], expected) < 2**-8, name
        else:
            np.testing.assert_array_equal(ours[name], expected, name)
    assert before["bf16"] == 0
    assert after["f32"] == before["f32"] - 2 * after["bf16"]
    if "expert" not in sizes:  # staged sums, of kernels split over two axes, are wide on CPUs
        assert after["f32"] < 0.05 * before["f32"]  # of the embedding and of norms
