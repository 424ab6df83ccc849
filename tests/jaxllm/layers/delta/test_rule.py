"""The chunked delta rule equals the recurrence, token by token, in each text of a packed row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import relative_l2

from jaxllm.layers.delta.rule import Tokens, delta_rule, invert, unit_length

TOLERANCE = 1e-5  # relative L2, float32
B, N, H, W = 2, 3, 8, 5
LENGTHS = {"less than a chunk": 37, "whole chunks": 128, "many chunks": 150}


def tokens_of(T: int, *, strong: bool = False, like_keys: bool = False) -> Tokens:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, T, N, size)) for size in (H, H, W))
    if like_keys:  # as if tokens were repeated: the system is as far from diagonal as can be
        k = k[:, :1] + 0.01 * k
    decay = -np.exp(rng.uniform(-6, 5 if strong else 0, (B, T, N)))
    beta = 1 / (1 + np.exp(-3 * rng.standard_normal((B, T, N))))
    runs = np.sort(rng.integers(0, 4, (B, T)), axis=1)
    runs[:, 0] = 0
    arrays = (jnp.asarray(x, jnp.float32) for x in (q, k, v, decay, beta))
    q, k, *others = arrays
    return Tokens(unit_length(q) * H**-0.5, unit_length(k), *others, jnp.asarray(runs))


def step_by_step(tokens: Tokens, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence as the paper has it, in float64."""
    q, k, v, decay, beta, runs = (np.asarray(x, np.float64) for x in tokens)
    state, outs, run = np.array(state, np.float64), [], np.zeros(B)
    for t in range(q.shape[1]):
        state[runs[:, t] != run] = 0
        run = runs[:, t]
        state = state * np.exp(decay[:, t])[..., None, None]
        held = np.einsum("BNHW,BNH->BNW", state, k[:, t])
        delta = beta[:, t][..., None] * (v[:, t] - held)
        state = state + np.einsum("BNH,BNW->BNHW", k[:, t], delta)
        outs.append(np.einsum("BNHW,BNH->BNW", state, q[:, t]))
    return np.stack(outs, axis=1), state


@pytest.mark.parametrize("length", examples(LENGTHS, "many chunks"))
@pytest.mark.parametrize("kind", ["plain", "strong decay", "alike keys"])
def test_chunks_equal_the_recurrence(length, kind):
    flags = {"strong": kind == "strong decay", "like_keys": kind == "alike keys"}
    tokens = tokens_of(LENGTHS[length], **flags)
    before = np.random.default_rng(1).standard_normal((B, N, H, W)).astype(np.float32)
    found = jax.jit(delta_rule)(tokens, before)
    expected = step_by_step(tokens, before)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_l2(ours, theirs) <= TOLERANCE


def test_one_token_after_the_other_equals_chunks():
    tokens = tokens_of(70)._replace(runs_BT=jnp.zeros((B, 70), jnp.int32))
    state, outs = jnp.zeros((B, N, H, W)), []
    whole, last = jax.jit(delta_rule)(tokens, state)
    step = jax.jit(delta_rule)
    for t in range(70):
        out, state = step(jax.tree.map(lambda x, t=t: x[:, t : t + 1], tokens), state)
        outs.append(out)
    assert relative_l2(np.concatenate(outs, axis=1), whole) <= TOLERANCE
    assert relative_l2(state, last) <= TOLERANCE


@pytest.mark.exhaustive
def test_gradients_equal_those_of_the_recurrence():
    """The expected gradients are those of a scan over single tokens."""
    tokens = tokens_of(100)
    weights = np.random.default_rng(2).standard_normal((B, 100, N, W))

    def scanned(tokens: Tokens) -> jax.Array:
        def step(carry, one):
            state, run = carry
            q, k, v, decay, beta, own = one
            state = jnp.where((own == run)[:, None, None, None], state, 0)
            state = state * jnp.exp(decay)[..., None, None]
            held = jnp.einsum("BNHW,BNH->BNW", state, k)
            state += jnp.einsum("BNH,BNW->BNHW", k, beta[..., None] * (v - held))
            return (state, own), jnp.einsum("BNHW,BNH->BNW", state, q)

        start = jnp.zeros((B, N, H, W)), tokens.runs_BT[:, 0]
        outs = jax.lax.scan(step, start, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens))[1]
        return jnp.moveaxis(outs, 0, 1)

    def gradients(outputs):
        loss = lambda given: (outputs(tokens._replace(**given)) * weights).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))({n: getattr(tokens, n) for n in tokens._fields[:5]})

    found = gradients(lambda tokens: delta_rule(tokens, jnp.zeros((B, N, H, W)))[0])
    for name, expected in gradients(scanned).items():
        assert relative_l2(found[name], expected) <= TOLERANCE, name


def test_the_inverse_of_a_triangular_matrix():
    system = np.tril(np.ones((64, 64), np.float32), -1)  # of equal keys: its powers reach 1e18
    expected = np.eye(64) - np.eye(64, k=-1)
    assert relative_l2(invert(jnp.asarray(system)), expected) <= 1e-6
