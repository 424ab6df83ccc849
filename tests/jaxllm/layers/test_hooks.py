"""Hooks see and replace the intermediate values of attention; without a hook they cost nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_model

from jaxllm.config import PositionConfig
from jaxllm.layers.attention import attention
from jaxllm.layers.attention.kernels.call import repeat_kv
from jaxllm.layers.context import Context
from jaxllm.layers.hooks import HOOK

T = 300  # three blocks of queries


@pytest.fixture(scope="module", params=["rope", "alibi"])
def layer(request):
    """An attention layer with random weights, and arguments to call it with."""
    model = random_model(scan_layers=False, positions=PositionConfig(kind=request.param))
    x_BTD = jax.random.normal(jax.random.key(0), (2, T, model.config.embed_dim))
    return model.layers["0"].attn, (x_BTD, Context(bias=model.position_bias))


def shown(attn, given, instead=lambda name, value: value):
    """Calls a layer with a hook; returns its output and the values that the hook got.

    `instead` maps each value to the one that the layer uses in its place.
    """
    values = {}

    def record(name, value):
        values.setdefault(name, []).append(value)
        return instead(name, value)

    setattr(attn, HOOK, record)
    try:
        return attn(*given)[0], values
    finally:
        delattr(attn, HOOK)


def program_of(layer):
    attn, given = layer
    x_BTD, context = given
    return jax.make_jaxpr(lambda x_BTD: attn(x_BTD, context)[0])(x_BTD)


def shapes_of(jaxpr):
    """Yields the shapes of all values that a program and its subprograms compute."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                program = getattr(inner, "jaxpr", inner)
                if hasattr(program, "eqns"):
                    yield from shapes_of(program)


def test_without_a_hook_the_program_is_unchanged(layer, monkeypatch):
    program = program_of(layer)
    monkeypatch.setattr(attention, "apply_hook", lambda module, **values: tuple(values.values()))
    monkeypatch.setattr(attention, "has_hook", lambda module: False)
    assert str(program_of(layer)) == str(program)


def test_without_a_hook_no_array_spans_all_queries_and_keys(layer):
    shapes = list(shapes_of(program_of(layer).jaxpr))
    assert any(shape[-1:] == (T,) for shape in shapes), "the last block covers all keys"
    assert not any(shape[-2:] == (T, T) for shape in shapes)


@pytest.mark.cases(1)
def test_hook_gets_the_computed_values(layer):
    attn, given = layer
    out_BTD, values = shown(attn, given)
    np.testing.assert_allclose(out_BTD, attn(*given)[0], rtol=2e-5, atol=1e-6)
    scores, probs = (np.concatenate(values[name], 1) for name in ("scores", "probs"))
    seen = np.tril(np.ones((T, T), bool))[:, None]
    assert scores.shape == probs.shape == (2, T, attn.config.num_heads, T)
    assert np.all((scores > -1e30) == seen)
    assert np.all(probs[np.broadcast_to(~seen, probs.shape)] == 0)
    np.testing.assert_allclose(probs, jax.nn.softmax(scores, axis=-1), rtol=1e-5, atol=1e-7)
    (q,), (k,), (v,), (mixed,) = (values[name] for name in ("q", "k", "v", "mixed"))
    k, v = (repeat_kv(x, q.shape[2] // k.shape[2]) for x in (k, v))
    products = np.einsum("BTNH,BSNH->BTNS", q, k) * q.shape[-1] ** -0.5
    if (bias := given[1].bias) is not None:
        at_1T = jnp.arange(T)[None]
        products = products + np.moveaxis(bias(at_1T, at_1T), 1, 2)
    shown_scores, wanted = (x[np.broadcast_to(seen, x.shape)] for x in (scores, products))
    np.testing.assert_allclose(shown_scores, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.einsum("BTNS,BSNH->BTNH", probs, v), mixed, rtol=1e-4, atol=1e-5)


def test_hook_can_replace_values(layer):
    """If the hook puts all probability on one key, every query gets that key's value."""
    attn, given = layer

    def first_key(name, value):
        return jnp.zeros_like(value).at[..., 0].set(1.0) if name == "probs" else value

    _, values = shown(attn, given, first_key)
    (v_BSKH,), (mixed_BTNH,) = values["v"], values["mixed"]
    first_B1NH = repeat_kv(v_BSKH, mixed_BTNH.shape[2] // v_BSKH.shape[2])[:, :1]
    np.testing.assert_allclose(
        mixed_BTNH, np.broadcast_to(first_B1NH, mixed_BTNH.shape), rtol=1e-5, atol=1e-6
    )
    assert not np.allclose(mixed_BTNH, shown(attn, given)[1]["mixed"][0])
