"""Taps in functions of users: identity outside of a run; recorded and replaced within one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.interop.parity import tap
from jaxllm.interop.parity.alignment.user_taps import taps_to

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((2, 4, 4)).astype(np.float32)


def looped(x):
    for i, w in enumerate(W):
        x = tap(f"layers.{i}", jnp.tanh(x @ w))
    return x


def scanned(x):
    return jax.lax.scan(lambda x, w: (tap("layers.{L}", jnp.tanh(x @ w)), None), x, W)[0]


FORMS = {
    "looped": looped,
    "jitted": jax.jit(looped),
    "scanned": scanned,
    "jitted scan": jax.jit(scanned),
    "by example": jax.vmap(looped),
    "by example, scanned": jax.jit(jax.vmap(scanned)),
    "by position": jax.vmap(jax.vmap(looped)),
    "rematerialized": jax.checkpoint(looped),
    "rematerialized, scanned": jax.checkpoint(scanned),
    "rematerialized by example": jax.checkpoint(jax.vmap(looped)),
    "by example, rematerialized": jax.vmap(jax.checkpoint(looped)),
}


@pytest.fixture
def seen():
    return {}


def record(seen, given={}):  # noqa: B006 - not changed
    def hook(name, value):
        assert name not in seen
        seen[name] = np.asarray(value)
        return given.get(name, value)

    return hook


@pytest.mark.parametrize("name", FORMS)
def test_taps_record_whole_batches_and_may_replace_them(name, seen):
    run = FORMS[name]
    expected = looped(X)
    np.testing.assert_allclose(run(X), expected, rtol=1e-5)  # without a run: nothing happens
    with taps_to(record(seen)):
        np.testing.assert_allclose(run(X), expected, rtol=1e-5)
    assert list(seen) == ["layers.0", "layers.1"]
    np.testing.assert_allclose(seen["layers.0"], np.tanh(X @ W[0]), rtol=1e-5)
    np.testing.assert_allclose(seen["layers.1"], expected, rtol=1e-5)
    other, forced = X[::-1].copy(), {}
    with taps_to(record(forced, {"layers.0": other})):
        run(X)
    np.testing.assert_allclose(forced["layers.0"], seen["layers.0"], rtol=1e-5)
    np.testing.assert_allclose(forced["layers.1"], np.tanh(other @ W[1]), rtol=1e-5)


def test_taps_see_values_that_lie_on_several_devices(seen):
    mesh = jax.make_mesh((2,), ("fsdp",))
    x = jax.device_put(X, jax.NamedSharding(mesh, jax.P("fsdp")))
    expected = looped(X)
    for run in (jax.checkpoint(looped), jax.jit(jax.checkpoint(scanned))):
        seen.clear()
        with taps_to(record(seen)):
            np.testing.assert_allclose(run(x), expected, rtol=1e-5)
        assert list(seen) == ["layers.0", "layers.1"]


def test_a_tap_of_parts_of_an_activation_is_refused(seen):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("x")
    run = jax.shard_map(looped, mesh=mesh, in_specs=rows, out_specs=rows)
    np.testing.assert_allclose(run(X), looped(X), rtol=1e-5)
    message = r"tap\('layers.0', ...\).*put it outside"
    with pytest.raises(UserError, match=message), taps_to(record(seen)):
        run(X)


def test_gradients_are_the_same_after_a_run_of_what_jax_traces_only_once(seen):
    run = jax.checkpoint(looped)
    before = jax.grad(lambda x: run(x).sum())(X)
    with taps_to(record(seen)):
        run(X)
    assert list(seen) == ["layers.0", "layers.1"]
    np.testing.assert_array_equal(jax.grad(lambda x: run(x).sum())(X), before)


def test_a_tap_costs_nothing_outside_of_a_run():
    with_taps = jax.jit(looped).lower(X).as_text()
    plain = jax.jit(lambda x: jnp.tanh(jnp.tanh(x @ W[0]) @ W[1])).lower(X).as_text()
    assert with_taps.count("\n") == plain.count("\n")
    assert "callback" not in with_taps


def test_a_run_ends_with_its_context_even_after_an_error(seen):
    with pytest.raises(RuntimeError, match="mine"), taps_to(record(seen)):
        raise RuntimeError("mine")
    looped(X)
    assert seen == {}
    assert not jax.config.jax_disable_jit
