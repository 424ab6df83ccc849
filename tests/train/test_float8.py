"""Training with 8-bit matmuls: near bfloat16, on a mesh too, and refused where it cannot be."""

import dataclasses

import jax
import numpy as np
import pytest
from mesh_gradients import on_devices, on_one, random_batch
from tiny import TINY, random_model, relative_l2

from jaxllm.config import ExpertsConfig, LayerKind, NumericsConfig
from jaxllm.distributed.devices import check_float8, find_device
from jaxllm.errors import UserError
from jaxllm.params import named_parameters
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.finetuning.start import model_to_train
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.planning.report import Options, report
from jaxllm.train.planning.topology import parse_topology

BFLOAT16 = {"numerics.dtype": "bfloat16"}
FLOAT8 = BFLOAT16 | {"numerics.matmul_dtype": "float8"}
RUN = TrainConfig(
    output="nowhere", steps=10, batch_size=8, seq_len=16, model=TINY, dtype="float8", remat="full"
)


def gradients(changes, mesh=None):
    """Returns the loss, and each parameter's gradient by its name."""
    model, batch = random_model(changes), random_batch(8, 16)
    loss, found = on_one(model, batch) if mesh is None else on_devices(model, batch, mesh)[0]
    named = jax.tree_util.tree_leaves_with_path(found)
    assert len(named) == len(named_parameters(model))
    return float(loss), {jax.tree_util.keystr(path): np.asarray(x) for path, x in named}


def errors_of(found, exact):
    return {name: relative_l2(found[name], exact[name]) for name in exact}


def test_gradients_are_as_near_as_their_bits_allow():
    """bfloat16 has 8 bits, these formats have 4 and 3: errors are about 16 times as large."""
    exact_loss, exact = gradients({})
    (_, half), (loss, found) = gradients(BFLOAT16), gradients(FLOAT8)
    errors, halves = errors_of(found, exact), errors_of(half, exact)
    assert abs(loss / exact_loss - 1) < 0.01
    assert 4 < np.median([errors[name] / halves[name] for name in exact]) < 16
    assert max(errors.values()) < 0.3


@pytest.mark.parametrize("axes", [{"fsdp": 4, "tensor": 2}, {"fsdp": 4, "expert": 2}])
def test_a_mesh_is_as_near_as_one_device(axes):
    """Devices scale their own rows and their own parts of a sum, and so round otherwise."""
    (exact_loss, exact), (_, one) = gradients({}), gradients(FLOAT8)
    loss, found = gradients(FLOAT8, make_mesh(**axes))
    assert abs(loss / exact_loss - 1) < 0.01
    medians = [np.median([*errors_of(each, exact).values()]) for each in (found, one)]
    assert medians[0] < 1.2 * medians[1]


def test_routers_and_heads_are_multiplied_as_before():
    experts = {
        "experts": ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24),
        "pattern": (LayerKind(mlp="experts"),),
    }
    model = random_model(FLOAT8 | experts)
    block = model.layers["0:3"]
    assert block.mlp.router.matmul_dtype == "dtype"
    assert block.attn.q_proj.matmul_dtype == "float8"
    text = jax.jit(lambda x: model(x).logits).lower(np.zeros((2, 4), np.int32)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert sum("f8E4M3FN" in line for line in products) == 4  # q, k, v and the output


def test_a_run_names_it_as_its_dtype():
    numerics = model_to_train(RUN, None).config.numerics
    assert (numerics.dtype, numerics.matmul_dtype) == ("bfloat16", "float8")
    assert numerics.param_dtype == "float32"


def test_it_is_refused_where_it_cannot_be(monkeypatch):
    with pytest.raises(UserError, match=r"needs numerics.dtype='bfloat16', not 'float32'"):
        NumericsConfig(matmul_dtype="float8")
    with pytest.raises(UserError, match=r"a100 has no units for 8-bit floats.*h100, h200 have"):
        check_float8(find_device("a100"))
    check_float8(None)
    check_float8(find_device("h100"))
    run = dataclasses.replace(RUN, mesh=MeshConfig(fsdp=8))
    options = Options(analytic=True)
    with pytest.raises(UserError, match="v5p has no units for 8-bit floats"):
        report(run, parse_topology("v5p:2x2x2"), options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxllm\[float8\]'"):
        model_to_train(RUN, None)


def test_the_plan_counts_its_arithmetic_at_its_own_peak():
    run = dataclasses.replace(RUN, mesh=MeshConfig(fsdp=8))
    half = dataclasses.replace(run, dtype="bfloat16")
    options = Options(analytic=True)
    seconds = [
        report(each, parse_topology("h100:8"), options).data["matmul_seconds"]
        for each in (run, half)
    ]
    assert seconds[0] < seconds[1]
