"""Cases of self-attention, and what it is by definition: in float64, with gradients by hand."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tiny import relative_l2

from jaxllm.layers.attention.attention import attention
from jaxllm.layers.attention.kernels.call import Call
from jaxllm.layers.attention.mask import MaskSpec, same_segment

TOLERANCE = 3e-6  # relative L2, float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One call of self-attention."""

    T: int = 150
    N: int = 4
    K: int = 2
    H: int = 16
    B: int = 2
    spec: MaskSpec = MaskSpec()
    softcap: float | None = None
    is_packed: bool = False
    has_sinks: bool = False

    @property
    def segment_ids(self) -> np.ndarray:
        """Packed documents of random lengths, another number in each row, with padding at last."""
        rng, ids = np.random.default_rng(5), np.zeros((self.B, self.T), np.int32)
        for row in range(self.B):
            ends = np.sort(rng.choice(np.arange(1, self.T), row + 4, replace=False))
            ids[row] = np.searchsorted(ends, np.arange(self.T), side="right") + 1
            ids[row, ends[-1] :] = 0
        return ids

    @property
    def positions(self) -> np.ndarray:
        """Positions that begin anew with each document."""
        if not self.is_packed:
            return np.arange(self.T)[None]
        ids = self.segment_ids
        first = [[np.argmax(row == i) for i in row] for row in ids]
        return np.arange(self.T) - np.array(first)


CASES = {
    "causal": Case(T=130),
    "everything": Case(
        T=290, N=6, spec=MaskSpec(window=50), softcap=2.0, is_packed=True, has_sinks=True
    ),
    "packed": Case(T=260, N=2, is_packed=True),
    "window of whole tiles": Case(T=700, K=4, spec=MaskSpec(window=128)),
    "chunks": Case(T=300, K=1, spec=MaskSpec(chunk=70)),
    "packed chunks": Case(T=300, K=1, spec=MaskSpec(chunk=33), is_packed=True),
    "both directions, packed": Case(T=200, H=24, spec=MaskSpec(causal=False), is_packed=True),
    "both directions": Case(T=256, spec=MaskSpec(causal=False), softcap=3.0),
    "wide heads": Case(T=70, N=2, H=160, softcap=1.5),
    "one token": Case(T=1, has_sinks=True),
}


class Given(NamedTuple):
    """Arrays of a case; `weight` is the gradient of the outputs."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    sinks: np.ndarray
    weight: np.ndarray


def arrays(case: Case) -> Given:
    """Draws queries, keys, values, sinks and the gradient of the outputs."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    B, T, H = case.B, case.T, case.H
    own, shared = (B, T, case.N, H), (B, T, case.K, H)
    return Given(draw(*own), draw(*shared), draw(*shared), draw(case.N), draw(*own))


def call_of(case: Case, sinks) -> Call:
    """The arguments of a kernel besides queries, keys and values."""
    ids = jnp.asarray(case.segment_ids) if case.is_packed else None
    return Call(
        case.spec,
        jnp.asarray(case.positions),
        ids,
        scale=0.3,
        softcap=case.softcap,
        sinks_N=sinks if case.has_sinks else None,
        order=np.arange(case.T)[None],
    )


def expected(case: Case) -> tuple[np.ndarray, ...]:
    """Returns outputs and the gradients of queries, keys, values and sinks, in float64."""
    q, k, v, sinks, weight = (x.astype(np.float64) for x in arrays(case))
    G = case.N // case.K
    k, v = np.repeat(k, G, axis=2), np.repeat(v, G, axis=2)
    linear = 0.3 * np.einsum("btnh,bsnh->bnts", q, k)
    tanh = np.tanh(linear / case.softcap) if case.softcap else None
    scores = linear if tanh is None else case.softcap * tanh
    at, ids = case.positions, case.segment_ids if case.is_packed else np.zeros((1, case.T))
    behind, seen = at[:, :, None] - at[:, None, :], ids[:, :, None] == ids[:, None, :]
    if case.spec.causal:
        seen = seen & (behind >= 0)
    if case.spec.window:
        seen = seen & (behind < case.spec.window)
    if case.spec.chunk:
        seen = seen & (at[:, :, None] // case.spec.chunk == at[:, None, :] // case.spec.chunk)
    powers = np.exp(scores) * seen[:, None]
    rest = np.exp(sinks)[:, None, None] if case.has_sinks else 0.0
    probs = powers / (powers.sum(-1, keepdims=True) + rest)
    out = np.einsum("bnts,bsnh->btnh", probs, v)
    dprobs = np.einsum("btnh,bsnh->bnts", weight, v)
    dots = (probs * dprobs).sum(-1, keepdims=True)
    dscores = probs * (dprobs - dots) * (1 if tanh is None else 1 - tanh**2)
    dq = 0.3 * np.einsum("bnts,bsnh->btnh", dscores, k)
    dk = 0.3 * np.einsum("bnts,btnh->bsnh", dscores, q)
    dv = np.einsum("bnts,btnh->bsnh", probs, weight)
    dk, dv = (x.reshape(*x.shape[:2], case.K, G, case.H).sum(3) for x in (dk, dv))
    if not case.has_sinks:
        return out, dq, dk, dv
    left = 1 - probs.sum(-1, keepdims=True)
    return out, dq, dk, dv, -(left * dots).sum((0, 2, 3))


def check(case: Case, implementation) -> None:
    """Compares an implementation, a function of q, k, v and a `Call`, with the definition."""
    *given, weight = map(jnp.asarray, arrays(case))

    def outputs(q, k, v, sinks):
        return implementation(q, k, v, call_of(case, sinks))

    out, pull = jax.vjp(jax.jit(outputs), *given)
    found = (out, *jax.jit(pull)(weight))
    names = ("out", "dq", "dk", "dv", "dsinks")
    errors = {
        name: relative_l2(ours, theirs)
        for name, ours, theirs in zip(names, found, expected(case), strict=False)
    }
    assert max(errors.values()) < TOLERANCE, errors


def plain(q_BTNH, k_BSKH, v_BSKH, call: Call):
    """A kernel that holds all scores, for what does not depend on the kernel."""
    own, at_BS, ids_BS = call.indices, call.positions_BS, call.segments
    mask_BTS = call.mask_spec.mask(at_BS[:, own], at_BS) & same_segment(ids_BS[:, own], ids_BS)
    return attention(
        *(q_BTNH, k_BSKH, v_BSKH, mask_BTS),
        scale=call.scale,
        softcap=call.softcap,
        sinks_N=call.sinks_N,
    )
