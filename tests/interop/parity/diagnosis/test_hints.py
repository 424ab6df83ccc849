"""Every known mistake is recognised in the arrays that it makes, and in models that make it."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hf_cases import CASES, tokens_of

from jaxllm.config import with_fields
from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.diagnosis.attention import sight
from jaxllm.interop.parity.diagnosis.evidence import Evidence
from jaxllm.interop.parity.diagnosis.hints import hint_of
from jaxllm.layers.attention import attention
from jaxllm.models import build_abstract, with_scanned_layers
from jaxllm.params import named_parameters, with_arrays

B, T, N, K, H, D, F = 2, 24, 4, 2, 8, 12, 16


def drawn(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def half(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def hint(path, ours, theirs, **around):
    return hint_of(Evidence(path, ours, theirs, 1e-6, **around))


def rotated(x_BTNH, layout="half", theta=1e4, start=0, rotated=H, times=1.0):
    """RoPE in float64, by another road than jaxllm's: complex numbers."""
    frequencies = times * theta ** (-np.arange(rotated // 2) / (rotated // 2))
    angles = (np.arange(x_BTNH.shape[1]) + start)[:, None] * frequencies
    x = x_BTNH.astype(np.float64)
    first = x[..., : rotated // 2] if layout == "half" else x[..., 0:rotated:2]
    second = x[..., rotated // 2 : rotated] if layout == "half" else x[..., 1:rotated:2]
    z = (first + 1j * second) * np.exp(1j * angles)[:, None]
    parts = [z.real, z.imag]
    both = np.concatenate(parts, -1) if layout == "half" else np.stack(parts, -1)
    both = both.reshape(*x.shape[:-1], rotated)
    return np.concatenate([both, x[..., rotated:]], -1).astype(np.float32)


BEFORE = drawn(B, T, N, H)
ROTATIONS = {
    "half/interleaved RoPE": {"layout": "interleaved"},
    "another theta: 10000 in the reference, 20000 in ours": {},
    "no RoPE in the reference": {"times": 0.0},
    "linear RoPE scaling: the reference turns 0.25 times as fast": {"times": 0.25},
    "positions that are +1 from ours": {"start": 1},
    "another share of rotated elements: the reference rotates 4": {"rotated": 4},
}


@pytest.mark.parametrize(("words", "changes"), ROTATIONS.items(), ids=ROTATIONS)
def test_rotations(words, changes):
    ours = rotated(BEFORE, theta=2e4 if "theta" in words else 1e4)
    theirs = rotated(BEFORE, **changes)
    found = hint("layers.1.attn.q", ours, theirs, given={"layers.1.attn.q_proj": BEFORE})
    assert words in found


@pytest.mark.parametrize("stack", ["", "decoder."])
@pytest.mark.parametrize(
    ("head", "whose"), [("lm_head", "the reference's"), ("embed.attend", "ours")]
)
def test_a_tied_head(stack, head, whose):
    x_BTD, table_VD = drawn(B, T, D), drawn(F, D)
    tied, untied = x_BTD @ table_VD.T, x_BTD @ drawn(D, F)
    ours, theirs = (untied, tied) if head == "lm_head" else (tied, untied)
    around = {f"{stack}final_norm": x_BTD}, {f"{stack}embed.embedding": table_VD}
    found = hint(f"{stack}{head}", ours, theirs, given=around[0], weights=around[1])
    assert found == f"Looks like a tied head: {whose} is tied"


def test_no_rotation_here():
    found = hint(
        *("layers.0.attn.k", BEFORE, rotated(BEFORE)), given={"layers.0.attn.k_proj": BEFORE}
    )
    assert "no RoPE in ours" in found


def test_a_rotation_of_what_is_not_known():
    given = {"layers.0.attn.q_proj": drawn(B, T, N, H, seed=9)}
    ours, growth = rotated(BEFORE), (1 + 0.1 * np.arange(T, dtype=np.float32))[:, None, None]
    assert "angles" in hint("layers.0.attn.q", ours, rotated(BEFORE, theta=50.0), given=given)
    assert "temperature" in hint("layers.0.attn.q", ours, ours * growth, given=given)


def test_a_missing_norm_of_queries():
    scale = 1 + 0.3 * drawn(H)
    normed = BEFORE / np.sqrt(np.square(BEFORE).mean(-1, keepdims=True) + 1e-6) * scale
    found = hint(
        *("layers.0.attn.q", rotated(BEFORE), rotated(normed)),
        given={"layers.0.attn.q_proj": BEFORE},
        weights={"layers.0.attn.q_norm.scale": scale},
    )
    assert "missing norm of queries and keys" in found


def normalised(x, eps):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


def test_norms():
    x, scale, other = drawn(B, T, D), 1 + 0.3 * drawn(D), 1 + 0.3 * drawn(D, seed=1)
    weights = {"layers.0.mlp_norm.scale": scale, "layers.1.mlp_norm.scale": other}
    h = normalised(x, 1e-3)
    plus_one = hint("layers.0.mlp_norm", h * (scale + 1), h * scale, weights=weights)
    assert "norm +1: the reference scales by one less" in plus_one
    centred = x - x.mean(-1, keepdims=True)

    def found(theirs):
        return hint("layers.0.mlp_norm", h * scale, theirs, weights=weights)

    assert "norm +1: the reference scales by one more" in found(h * (scale + 1))
    assert "norm +1: the reference scales by one less" in found(h * (scale - 1))
    assert "right with layers.1.mlp_norm.scale" in found(h * other)
    assert "a LayerNorm" in found(centred / centred.std(-1, keepdims=True) * scale)
    assert "another eps: the reference's is about 10 times ours" in found(
        normalised(x, 1e-2) * scale
    )


def test_projections():
    x, kernel, other = drawn(B, T, D), drawn(D, D), drawn(D, D, seed=1)
    path, bias = "layers.0.attn.o_proj", drawn(D)
    weights = {f"{path}.kernel": kernel, "layers.1.attn.o_proj.kernel": other}
    around = {"weights": weights, "given": {"layers.0.attn.mixed": x}}

    def found(theirs):
        return hint(path, x @ kernel, theirs, **around)

    assert "transposed square matrix" in found(x @ kernel.T)
    assert "right with layers.1.attn.o_proj.kernel" in found(x @ other)
    assert "missing or another bias" in found(x @ kernel + bias)
    assert "bfloat16: the reference rounds to it" in found(half(x @ kernel))
    assert "shift by one position: ours is late" in found(np.roll(x @ kernel, -1, axis=1))
    assert "(embed_dim)" in hint(
        "embed", x, D * x, given={"embed": D * x, "layers.0.attn.q": BEFORE}
    )
    assert "1 / sqrt(head_dim)" in hint(path, x, x / np.sqrt(H), given={"layers.0.attn.q": BEFORE})
    assert "soft cap: the reference's is capped at 2" in found(2 * np.tanh(x @ kernel / 2))
    token = (x @ kernel).copy()
    token[1, 7] += 1
    assert "Only 1 of 48 tokens are off: (row, position) (1, 7)" in found(token)
    assert found(drawn(B, T, D, seed=5)) is None


def test_swaps_and_orders():
    gate, up = drawn(B, T, F), drawn(B, T, F, seed=1)
    found = {"layers.0.mlp.gate_proj": gate, "layers.0.mlp.up_proj": up}
    words = hint("layers.0.mlp.gate_proj", gate, up, found=found)
    assert "gate_proj and up_proj swapped" in words
    order = [2, 0, 3, 1]
    words = hint("layers.0.attn.q_proj", BEFORE, BEFORE[:, :, order])
    assert "heads in another order: the reference's are our [2, 0, 3, 1]" in words
    interleaved = BEFORE.reshape(B, T, N, 2, -1).swapaxes(-1, -2).reshape(BEFORE.shape)
    words = hint("layers.0.attn.q_proj", BEFORE, interleaved)
    assert "half/interleaved RoPE: heads' elements" in words


def silu(x):
    return x / (1 + np.exp(-x))


def test_activations():
    gate, up, kernel = drawn(B, T, F), drawn(B, T, F, seed=1), drawn(F, D)
    around = {
        "given": {"layers.0.mlp.gate_proj": gate, "layers.0.mlp.up_proj": up},
        "weights": {"layers.0.mlp.down_proj.kernel": kernel},
    }
    ours, swapped = silu(gate) * up @ kernel, silu(up) * gate @ kernel
    squared = np.maximum(gate, 0) ** 2 * up @ kernel
    assert "another activation: the reference's is relu squared" in hint(
        "layers.0.mlp.down_proj", ours, squared, **around
    )
    assert "gate and up swapped" in hint("layers.0.mlp.down_proj", swapped, ours, **around)


def test_masks_in_words():
    at, keys = np.arange(T)[:, None], np.arange(T)[None]
    causal = keys <= at
    assert sight(causal) == "all before it"
    assert sight(keys < at) == "all before it but not itself"
    assert sight(np.ones((T, T), bool)) == "all keys"
    assert sight(causal & (at - keys < 5)) == "a window of 5"
    assert sight(causal & (at // 6 == keys // 6)) == "chunks of 6"
    assert sight(causal & ((at + 1) // 6 == (keys + 1) // 6)) == "chunks of 6, the first of 5"
    assert sight(np.random.default_rng(0).random((T, T)) < 0.5) is None


def scores_of(q, k, seen, scale=1.0):
    k = np.repeat(k, N // K, axis=2) if k.shape[2] == K else k
    return np.where(seen, scale * np.einsum("BTNH,BSNH->BTNS", q, k), np.float32(-np.inf))


def test_scores():
    q, k = drawn(B, T, N, H), drawn(B, T, K, H)
    at, keys = np.arange(T)[:, None, None], np.arange(T)
    seen = keys <= at
    ours, path = scores_of(q, k, seen), "layers.0.attn.scores"
    given = {"layers.0.attn.q": q, "layers.0.attn.k": k}

    def found(theirs):
        return hint(path, ours, theirs.astype(np.float32), given=given)

    window = scores_of(q, k, seen & (at - keys < 7))
    assert "mask: a window of 7 in the reference, all before it in ours" in found(window)
    assert "(1 / sqrt(head_dim))" in found(ours / np.sqrt(H))
    assert "bias of the distance" in found(ours - 0.1 * np.abs(at - keys))
    cap = np.where(seen, 3 * np.tanh(ours / 3), -np.inf)
    assert "soft cap: the reference's is capped at 3" in found(cap)
    tiled = scores_of(q, np.tile(k, (1, 1, N // K, 1)), seen)
    assert "k/v heads tiled instead of repeated there" in found(tiled)
    assert "tiled instead of repeated" in hint(path, tiled, ours, given=given)


def test_probabilities():
    q, k = drawn(B, T, N, H), drawn(B, T, N, H, seed=1)
    scores = scores_of(q, k, np.arange(T) <= np.arange(T)[:, None, None])
    exps = np.exp(scores - scores.max(-1, keepdims=True))
    probs, path = exps / exps.sum(-1, keepdims=True), "layers.0.attn.probs"
    given = {"layers.0.attn.scores": scores}
    assert "softmax in bfloat16 in the reference" in hint(path, probs, half(probs), given=given)
    assert "softmax in bfloat16 in ours" in hint(path, half(probs), probs, given=given)
    sunk = exps / (exps.sum(-1, keepdims=True) + 0.5)
    assert "attention sink" in hint(path, probs, sunk, given=given)


def test_experts():
    ours, router = drawn(B, T, D), drawn(B, T, 4)
    given = {"layers.0.mlp.router": router}
    off = router.argmax(-1) == 2
    theirs = np.where(off[..., None], drawn(B, T, D, seed=3), ours)
    assert "the tokens of expert 2 are off" in hint("layers.0.mlp", ours, theirs, given=given)
    ratio = np.random.default_rng(0).random((B, T, 1), np.float32) + 0.5
    assert "weights of the experts' outputs" in hint(
        "layers.0.mlp", ours, ratio * ours, given=given
    )
    other = drawn(B, T, D, seed=4)
    assert "The router agrees" in hint("layers.0.mlp", ours, other, given=given)


def test_what_is_not_a_number():
    ours = drawn(B, T, D)
    ours[0, 3] = np.nan
    assert hint("embed", ours, drawn(B, T, D)) == "Of 576 numbers 12 are not a number"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By family a model of transformers, ours with its weights, and tokens; not to be changed."""
    return {name: _pair(name, tmp_path_factory) for name in ("llama", "gemma2", "mixtral")}


def _pair(name, folders):
    original, folder = CASES[name].build(), folders.mktemp(name)
    original.save_pretrained(folder)
    model = with_scanned_layers(load_pretrained(folder, dtype="float32"), False)
    return original, model, tokens_of(original, batch_size=1)[:, :130]


def parameters(model):
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def configured(changes):
    def change(model):
        config = with_fields(model.config, changes)
        return with_arrays(build_abstract(config), parameters(model))

    return change


def swapped(one, other):
    def change(model):
        arrays = parameters(model)
        return with_arrays(model, {**arrays, one: arrays[other], other: arrays[one]})

    return change


def altered(name, function):
    def change(model):
        arrays = parameters(model)
        return with_arrays(model, {**arrays, name: function(arrays[name])})

    return change


REAL = {
    "llama theta": ("llama", configured({"rope.theta": 3e4}), "layers.0.attn.q", "another theta"),
    "llama eps": ("llama", configured({"norms.eps": 1e-4}), "layers.0.attn_norm", "another eps"),
    "llama layout": (
        *("llama", configured({"rope.layout": "interleaved"}), "layers.0.attn.q_proj"),
        "half/interleaved",
    ),
    "llama scale": (
        *("llama", configured({"attention.scale": 0.5}), "layers.0.attn.scores"),
        "0.5 times ours",
    ),
    "llama activation": (
        *("llama", configured({"mlp.activation": "gelu"}), "layers.0.mlp.down_proj"),
        "another activation: the reference's is silu",
    ),
    "llama swapped layers": (
        "llama",
        swapped("layers.1.mlp.up_proj.kernel", "layers.2.mlp.up_proj.kernel"),
        *("layers.1.mlp.up_proj", "right with layers.2"),
    ),
    "llama key heads": (
        *("llama", altered("layers.2.attn.k_proj.kernel", lambda k_DKH: k_DKH[:, ::-1])),
        *("layers.2.attn.k_proj", "heads in another order"),
    ),
    "gemma2 window": (
        *("gemma2", configured({"attention.window": 71}), "layers.0.attn.scores"),
        "a window of 70 in the reference, a window of 71 in ours",
    ),
    "gemma2 cap": (
        *("gemma2", configured({"attention.softcap": None}), "layers.0.attn.scores"),
        "soft cap: the reference's is capped at",
    ),
    "gemma2 norm": (
        *("gemma2", configured({"norms.kind": "rms_float32"}), "layers.0.attn_norm"),
        "norm +1: the reference scales by one more",
    ),
    "gemma2 embedding": ("gemma2", configured({"embed_scale": 1.0}), "embed", "(sqrt(embed_dim))"),
    "mixtral norm": (
        "mixtral",
        swapped("layers.1.attn_norm.scale", "layers.1.mlp_norm.scale"),
        *("layers.1.attn_norm", "swapped norms: right with layers.1.mlp_norm.scale"),
    ),
    "mixtral expert": (
        "mixtral",
        altered("layers.1.mlp.down_proj.kernel", lambda k_EFD: k_EFD.at[-1].multiply(1.5)),
        *("layers.1.mlp", "the tokens of expert"),
    ),
}


@pytest.mark.parametrize(("family", "bug", "path", "words"), REAL.values(), ids=REAL)
def test_a_bug_in_a_model_is_recognised(models, family, bug, path, words):
    reference, model, tokens_BT = models[family]
    report = compare(reference, bug(model), tokens_BT, levels=("layers",))
    first = report.first_divergence
    assert first.path == path
    assert words in first.hint


def test_softmax_in_half_precision_is_recognised(models, monkeypatch):
    reference, model, tokens_BT = models["llama"]
    honest = attention.jax.nn.softmax
    monkeypatch.setattr(
        attention.jax.nn,
        "softmax",
        lambda x, axis=-1: honest(x.astype(jnp.bfloat16), axis=axis).astype(x.dtype),
    )
    first = compare(reference, model, tokens_BT, levels=("layers",)).first_divergence
    assert first.path == "layers.0.attn.probs"
    assert "softmax in bfloat16 in ours" in first.hint
