"""Mixtures of experts equal a dense PyTorch oracle that runs every expert on every token."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tiers import examples
from tiny import TINY, random_model, relative_l2
from torch.nn.functional import silu
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from jaxllm.config import ExpertsConfig, LayerKind, MlpConfig, NumericsConfig, with_fields
from jaxllm.layers.context import Context
from jaxllm.layers.experts.balance import Load, load_balance
from jaxllm.layers.experts.moe import MoE, assign_overflow
from jaxllm.layers.stack import restack

TOLERANCE = 2e-6  # relative L2, float32
E, F = 5, 24
EXPERTS = ExpertsConfig(num_experts=E, top_k=2, mlp_dim=F)
SPARSE = (LayerKind(mlp="experts"),)
B, T = 2, 9
X_BTD = np.random.default_rng(1).standard_normal((B, T, TINY.embed_dim)).astype(np.float32)

CASES = {
    "softmax": {},
    "normalized": {"normalize": True},
    "one expert a token": {"top_k": 1},
    "every expert": {"top_k": E, "normalize": True},
    "sigmoid of the input": {"scores": "sigmoid", "scale": "input"},
    "shared": {"shared_mlp_dim": 40},
    "shared with a gate": {"shared_mlp_dim": 40, "shared_gate": True},
}


def moe_of(experts: ExpertsConfig = EXPERTS, **changes):
    changes = {"num_layers": 1, "scan_layers": False, "pattern": SPARSE, **changes}
    return random_model(experts=experts, **changes).layers["0"].mlp


def torch_mlp(x: torch.Tensor, weights: dict[str, torch.Tensor], expert: object) -> torch.Tensor:
    """The MLP of one expert, with weights found by name."""

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        bias = weights.get(f"{name}.bias")
        return x @ weights[f"{name}.kernel"][expert] + (0 if bias is None else bias[expert])

    up = project("up_proj", x)
    is_gated = "gate_proj.kernel" in weights
    return project("down_proj", silu(project("gate_proj", x)) * up if is_gated else silu(up))


def torch_moe(x_BTD: torch.Tensor, weights: dict[str, torch.Tensor], experts: ExpertsConfig):
    logits_BTE = x_BTD @ weights["router.kernel"]
    probs_BTE = logits_BTE.softmax(-1) if experts.scores == "softmax" else logits_BTE.sigmoid()
    chosen_BTE = torch.zeros_like(probs_BTE).scatter(
        -1, logits_BTE.topk(experts.top_k).indices, 1.0
    )
    weight_BTE = probs_BTE * chosen_BTE
    if experts.normalize:
        weight_BTE = weight_BTE / weight_BTE.sum(-1, keepdim=True)
    out_BTD = torch.zeros_like(x_BTD)
    for e in range(experts.num_experts):
        weight_BT1 = weight_BTE[..., e, None]
        if experts.scale == "input":
            out_BTD = out_BTD + chosen_BTE[..., e, None] * torch_mlp(weight_BT1 * x_BTD, weights, e)
        else:
            out_BTD = out_BTD + weight_BT1 * torch_mlp(x_BTD, weights, e)
    shared = {name.removeprefix("shared."): w for name, w in weights.items() if "shared." in name}
    if not shared:
        return out_BTD
    shared_BTD = torch_mlp(x_BTD, shared, ...)
    if experts.shared_gate:
        shared_BTD = (x_BTD @ weights["shared_gate.kernel"]).sigmoid() * shared_BTD
    return out_BTD + shared_BTD


def tensors(state: nnx.State) -> dict[str, torch.Tensor]:
    flat = nnx.to_flat_state(state)
    return {".".join(path): torch.tensor(np.asarray(v.get_value())) for path, v in flat}


def check_against_torch(moe, x: np.ndarray) -> None:
    """Asserts equal outputs, and equal gradients of a fixed weighted sum of the output."""
    graphdef, state = nnx.split(moe)
    weight = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)

    def loss(state, x):
        out, _ = nnx.merge(graphdef, state)(x)
        return jnp.vdot(out, weight), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (by_state, by_x), out = gradient(state, jnp.asarray(x))
    weights = {name: t.requires_grad_() for name, t in tensors(state).items()}
    x_BTD = torch.tensor(x, requires_grad=True)
    expected = torch_moe(x_BTD, weights, moe.experts)
    (expected * torch.tensor(weight)).sum().backward()
    assert relative_l2(out, expected.detach()) < TOLERANCE
    assert relative_l2(by_x, x_BTD.grad) < TOLERANCE
    gradients = tensors(by_state)
    assert gradients.keys() == weights.keys()
    for name, found in gradients.items():
        assert relative_l2(found, weights[name].grad) < TOLERANCE, name


@pytest.mark.cases(1)
@pytest.mark.parametrize("case", examples(CASES, "normalized", "sigmoid of the input", "shared"))
def test_values_and_gradients_equal_running_every_expert(case):
    check_against_torch(moe_of(dataclasses.replace(EXPERTS, **CASES[case])), X_BTD)


@pytest.mark.parametrize("changes", [{"mlp.bias": True}, {"mlp.gated": False}], ids=str)
def test_experts_follow_the_mlp_config(changes):
    check_against_torch(moe_of(**changes), X_BTD)


@pytest.mark.exhaustive
def test_expert_without_tokens():
    moe = moe_of()
    moe.router.kernel[...] = moe.router.kernel[...].at[:, 3].set(-1.0)
    x_BTD = np.abs(X_BTD)
    check_against_torch(moe, x_BTD)
    graphdef, state = nnx.split(moe)
    gradient = jax.grad(lambda state: nnx.merge(graphdef, state)(x_BTD)[0].sum())(state)
    for projection in ("gate_proj", "up_proj", "down_proj"):
        kernel = np.asarray(gradient[projection]["kernel"].get_value())
        assert (np.abs(kernel).max((1, 2)) > 0).tolist() == [e != 3 for e in range(E)]


def test_xavier_fans_are_those_of_one_expert():
    """Fans are those of one expert, regardless of the number of experts."""
    config = with_fields(TINY, {"init.kind": "xavier"}, pattern=SPARSE, experts=EXPERTS)
    moe = MoE(config, rngs=nnx.Rngs(0))
    bound = (6 / (TINY.embed_dim + F)) ** 0.5
    for projection in (moe.gate_proj, moe.up_proj, moe.down_proj):
        largest = np.abs(projection.kernel[...]).max()
        assert 0.99 * bound < largest <= bound


def test_token_outputs_are_independent_without_capacity():
    """No token is dropped, no matter how many others choose the same expert."""
    moe = jax.jit(lambda x: moe_of()(x)[0])
    crowded = np.broadcast_to(X_BTD[:1, :1], (1, 40, TINY.embed_dim))
    together = moe(np.concatenate([X_BTD[:1], crowded], axis=1))
    assert relative_l2(together[:, :T], moe(X_BTD[:1])) < TOLERANCE
    assert relative_l2(together[:, T:], np.broadcast_to(together[:, :1], crowded.shape)) < TOLERANCE


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("capacity", examples([1, 3, 5, 100], 1, 5))
@pytest.mark.parametrize("is_gated", [True, False])
def test_tokens_beyond_capacity_go_to_the_overflow_expert(top_k, capacity, is_gated):
    """Compares with a loop over tokens; padding uses no capacity."""
    experts = dataclasses.replace(EXPERTS, top_k=top_k, capacity=capacity, router_bias=True)
    moe = moe_of(experts, mlp=MlpConfig(bias=True, gated=is_gated))
    weights = tensors(nnx.split(moe)[1])
    own = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] != "overflow"}
    last = {n.removeprefix("overflow."): x for n, x in weights.items() if n.startswith("overflow.")}
    taken, spilled, expected = [0] * E, 0, torch.zeros(B * T, TINY.embed_dim)
    tokens = torch.tensor(X_BTD).reshape(-1, TINY.embed_dim)
    for s, token in enumerate(tokens):
        logits = token @ own["router.kernel"] + own["router.bias"]
        for e in logits.topk(top_k).indices.tolist() if not PADDING.reshape(-1)[s] else []:
            is_full = taken[e] == capacity
            taken[e] += not is_full
            spilled += is_full
            y = torch_mlp(token, last, ...) if is_full else torch_mlp(token, own, e)
            expected[s] += logits.softmax(-1)[e] * y
    assert (spilled > 0) == (capacity < 5 or (capacity == 5 and top_k == 2))
    out, load = jax.jit(moe)(X_BTD, ~PADDING)
    kept = ~PADDING.reshape(-1)
    assert relative_l2(out.reshape(-1, TINY.embed_dim)[kept], expected[kept]) < TOLERANCE
    assert float(load.chosen_E.sum()) == top_k * kept.sum()  # overflowing choices count too


def test_capacity_is_assigned_in_order():
    chosen = jnp.asarray([2, 0, 2, 2, 3, 0, 1])  # 3: padding
    assert assign_overflow(chosen, 3, 2).tolist() == [2, 0, 2, 3, 3, 0, 1]
    assert assign_overflow(chosen, 3, 1).tolist() == [2, 0, 3, 3, 3, 3, 1]


def test_overflow_expert_gets_gradients():
    experts = dataclasses.replace(EXPERTS, capacity=1)
    graphdef, state = nnx.split(moe_of(experts))
    gradient = jax.grad(lambda s: jnp.square(nnx.merge(graphdef, s)(X_BTD)[0]).sum())(state)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["overflow"]))


def test_bfloat16_is_close_to_float32():
    """On inputs for which rounding does not change the chosen experts."""
    low, exact = moe_of(numerics=NumericsConfig(dtype="bfloat16")), moe_of()
    x_BTD = jnp.asarray(X_BTD, jnp.bfloat16)
    out, load = low(x_BTD)
    expected, exact_load = exact(x_BTD.astype(jnp.float32))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(load.chosen_E, exact_load.chosen_E)
    assert relative_l2(out, expected) < 2e-2
    assert load.probs_E.dtype == jnp.float32


def loads_of(*, num_layers: int, is_token: np.ndarray | None = None) -> tuple[list, Load]:
    """Random router logits of several layers, and the loads that result."""
    logits = np.random.default_rng(3).standard_normal((num_layers, B, T, E)).astype(np.float32) * 2
    loads = []
    for logits_BTE in logits:
        probs_BTE = jax.nn.softmax(logits_BTE)
        loads.append(Load.from_routing(probs_BTE, *jax.lax.top_k(probs_BTE, 2), is_token))
    tensors = [torch.tensor(logits_BTE).reshape(-1, E) for logits_BTE in logits]
    return tensors, jax.tree.map(lambda *xs: jnp.stack(xs), *loads)


PADDING = np.array([[True] * 6 + [False] * 3, [True] * 2 + [False] * 7])


@pytest.mark.parametrize("is_token", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_load_balancing_loss_matches_transformers(num_layers, is_token):
    logits, loads = loads_of(num_layers=num_layers, is_token=is_token)
    mask = None if is_token is None else torch.tensor(is_token, dtype=torch.int32)
    expected = float(load_balancing_loss_func(tuple(logits), E, 2, mask))
    assert float(load_balance(loads, "model")) == pytest.approx(expected, rel=1e-6)
    one_by_one = [float(load_balancing_loss_func((layer,), E, 2, mask)) for layer in logits]
    assert float(load_balance(loads, "layer")) == pytest.approx(np.mean(one_by_one), rel=1e-6)


def test_sum_balance_adds_layers_without_the_factor_e():
    logits, loads = loads_of(num_layers=3)
    by_hand = 0.0
    for layer in logits:
        probs = layer.softmax(-1)
        chosen = torch.zeros_like(probs).scatter(-1, probs.topk(2).indices, 1.0)
        by_hand += float((chosen.mean(0) * probs.mean(0)).sum())
    assert float(load_balance(loads, "sum")) == pytest.approx(by_hand, rel=1e-6)


def test_kept_balance_equals_the_formula():
    """Two experts that took 3 and 1 of 8 tokens, and a layer where nothing was kept."""
    none = jnp.zeros((2, 2))
    loads = Load(jnp.asarray([8.0, 8.0]), none, none, jnp.asarray([[1.5, 0.25], [0.0, 0.0]]))
    by_hand = 2 * (3 / 8 * 1.5 / 3 + 1 / 8 * 0.25 / 1)
    assert float(load_balance(loads, "kept")) == pytest.approx(by_hand, rel=1e-6)


def test_load_weights_leave_out_overflow_and_padding():
    """Compares with a loop over choices; padding and choices of full experts do not count."""
    experts = dataclasses.replace(EXPERTS, capacity=3, router_bias=True, normalize=True)
    moe = moe_of(experts)
    _, load = moe(jnp.asarray(X_BTD), ~PADDING)
    _, weights_BTk, chosen_BTk = moe.route(X_BTD)
    sums, taken = np.zeros(E), np.zeros(E)
    for is_pad, weights, chosen in zip(
        PADDING.reshape(-1), weights_BTk.reshape(-1, 2), chosen_BTk.reshape(-1, 2), strict=True
    ):
        for weight, e in zip(weights, chosen, strict=True):
            if not is_pad and taken[e] < 3:
                sums[e] += weight
                taken[e] += 1
    assert 0 < taken.sum() < 2 * (~PADDING).sum()
    np.testing.assert_allclose(load.weights_E, sums, rtol=1e-6)


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("scan", "balance"),
    examples(itertools.product([True, False], ["layer", "model"]), (True, "model")),
)
def test_auxiliary_loss_covers_all_layers_with_experts(scan, balance):
    """Two of four layers have experts; padding does not count, and the loss has a gradient."""
    experts = dataclasses.replace(EXPERTS, aux_weight=0.3, balance=balance)
    pattern = (LayerKind(), LayerKind(mlp="experts"))
    model = random_model(experts=experts, pattern=pattern, num_layers=4, scan_layers=scan)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (B, T))
    segment_ids = PADDING.astype(int)
    rewritten = np.where(PADDING, tokens, 7)
    found = [
        float(jax.jit(model)(jnp.asarray(t), segment_ids=segment_ids).aux_loss)
        for t in (tokens, rewritten)
    ]
    assert found[0] == found[1]
    loads = jax.jit(lambda model: loads_by_hand(model, tokens, segment_ids))(model)
    assert found[0] == pytest.approx(0.3 * float(load_balance(loads, balance)), rel=1e-6)
    graphdef, state = nnx.split(model)
    gradient = jax.grad(lambda s: nnx.merge(graphdef, s)(tokens).aux_loss)(state)
    routers = [v for path, v in nnx.to_flat_state(gradient) if "router" in path]
    assert routers
    assert all(np.abs(v.get_value()).max() > 0 for v in routers)


def loads_by_hand(model, tokens, segment_ids) -> Load:
    """The loads of layers 1 and 3, computed layer by layer."""
    x_BTD, loads = model.embed(tokens), []
    for block in restack(model.layers, model.config.kinds, False).values():
        x_BTD, *_, load = block(x_BTD, Context(segment_ids))
        loads += [] if load is None else [load]
    assert len(loads) == 2
    return jax.tree.map(lambda *xs: jnp.stack(xs), *loads)


def test_capacity_counts_the_tokens_of_a_call_row_after_row():
    """The first row is as if it were alone, and takes places from the rows after it."""
    experts = dataclasses.replace(EXPERTS, capacity=4)
    moe = jax.jit(moe_of(experts))
    x = np.random.default_rng(3).standard_normal((2, 12, TINY.embed_dim)).astype(np.float32)
    (both, _), (first, _), (second, _) = moe(x), moe(x[:1]), moe(x[1:])
    assert relative_l2(both[:1], first) < TOLERANCE
    assert relative_l2(both[1:], second) > 1e-2
