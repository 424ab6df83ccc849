"""Layers of several kinds are divided into runs, labeled, stacked and unstacked."""

import dataclasses
from functools import partial
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import examples
from tiny import TINY, random_model, relative_l2

from jaxllm.config import AttentionConfig, ExpertsConfig, LayerKind, Remat, RopeConfig
from jaxllm.layers.stack import (
    Run,
    apply_layers,
    find_runs,
    layer_depths,
    layer_labels,
    layer_range,
    make_layers,
    restack,
)
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters, split
from jaxllm.train import make_mesh

TOLERANCE = 2e-6  # relative L2, float32

# The kinds of layers, and the runs that they are divided into.
CUTS = {
    "a": [Run(0, 1, 1)],
    "ab": [Run(0, 1, 1), Run(1, 1, 1)],
    "aaaa": [Run(0, 1, 4)],
    "abab": [Run(0, 2, 2)],
    "ababa": [Run(0, 2, 2), Run(4, 1, 1)],
    "abababab": [Run(0, 2, 4)],
    "aaab" * 3: [Run(0, 4, 3)],
    "aaabaaabaa": [Run(0, 4, 2), Run(8, 1, 2)],
    "aaabaa": [Run(0, 1, 3), Run(3, 1, 1), Run(4, 1, 2)],
    "baaaa": [Run(0, 1, 1), Run(1, 1, 4)],
    "abbbb": [Run(0, 1, 1), Run(1, 1, 4)],
    "cababab": [Run(0, 1, 1), Run(1, 2, 3)],
    "aabb": [Run(0, 1, 2), Run(2, 1, 2)],
    "abc": [Run(0, 1, 1), Run(1, 1, 1), Run(2, 1, 1)],
    "aaabbbaaabbb": [Run(0, 6, 2)],
}


@pytest.mark.parametrize(("kinds", "expected"), CUTS.items(), ids=CUTS)
def test_run_has_the_period_that_covers_the_most_layers(kinds, expected):
    assert find_runs(kinds, scan=True) == expected


def test_without_scan_all_layers_are_one_run():
    assert find_runs("aabab", scan=False) == [Run(0, 5, 1)]


@pytest.mark.parametrize("seed", range(30))
def test_runs_cover_every_layer_once_and_repeat_their_kinds(seed):
    rng = np.random.default_rng(seed)
    kinds = "".join(rng.choice(list("abc"[: 1 + seed % 3]), rng.integers(1, 40)))
    for scan in (True, False):
        found = find_runs(kinds, scan)
        covered = [i for start, p, n in found for i in range(start, start + p * n)]
        assert covered == list(range(len(kinds)))
        for run in found:
            for label in run.labels:
                assert len({kinds[i] for i in layer_range(label)}) == 1
        everything = sorted(i for run in found for label in run.labels for i in layer_range(label))
        assert everything == covered


def test_labels_are_layer_slices():
    assert Run(0, 1, 32).labels == ["0:32"]
    assert Run(0, 4, 2).labels == ["0:8:4", "1:8:4", "2:8:4", "3:8:4"]
    assert Run(3, 1, 1).labels == ["3"]
    assert Run(2, 3, 1).labels == ["2", "3", "4"]


def test_layer_range_returns_the_layers_of_a_label():
    assert layer_range("5") == range(5, 6)
    assert layer_range("0:32") == range(32)
    assert list(layer_range("1:24:6")) == [1, 7, 13, 19]


class Layer(nnx.Module):
    """Doubles or negates x, by its kind, and adds its own vector."""

    def __init__(self, kind: str, key: jax.Array):
        self.kind = kind
        self.offset = nnx.Param(jax.random.normal(key, (3,)), dims="D")

    def __call__(self, x: jax.Array) -> jax.Array:
        return (2 * x if self.kind == "a" else -x) + self.offset


def layers_of(kinds: str, scan: bool) -> nnx.Dict:
    return make_layers(Layer, kinds, scan, jax.random.key(0))


def offsets(layers: nnx.Dict) -> dict[str, np.ndarray]:
    return {label: np.asarray(layers[label].offset[...]) for label in layer_labels(layers)}


@pytest.mark.parametrize("kinds", examples(CUTS, *list(CUTS)[::3]))
def test_restacking_round_trip_is_bit_exact(kinds):
    stacked, listed = layers_of(kinds, True), layers_of(kinds, False)
    assert layer_labels(listed) == [str(i) for i in range(len(kinds))]
    assert layer_labels(stacked) == [label for run in CUTS[kinds] for label in run.labels]
    for found, expected in (
        (restack(stacked, kinds, False), listed),
        (restack(restack(stacked, kinds, False), kinds, True), stacked),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for label, offset in offsets(expected).items():
            np.testing.assert_array_equal(offsets(found)[label], offset)
            assert found[label].kind == kinds[layer_range(label)[0]]
    assert len({offset.tobytes() for offset in offsets(listed).values()}) == len(kinds)


def test_restacking_to_the_same_form_returns_the_same_object():
    stacked = layers_of("ababa", True)
    assert restack(stacked, "ababa", True) is stacked


@pytest.mark.cases(3)
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("kinds", examples(CUTS, *list(CUTS)[1::3]))
def test_layers_apply_in_order_stacked_or_not(kinds, remat):
    """Each layer has its own cache and other output; without caches, none are returned."""
    x = jnp.asarray([[1.0, 2.0, 3.0]])
    expected, by_hand = x, []
    listed = layers_of(kinds, False)
    for label in layer_labels(listed):
        by_hand.append(expected.sum() if listed[label].kind == "a" else None)
        expected = listed[label](expected)

    def step(layer, x, cache):
        return layer(x), cache + x, x.sum() if layer.kind == "a" else None

    for scan in (True, False):
        layers = layers_of(kinds, scan)
        caches = {
            label: jnp.stack([jnp.full((1, 3), i) for i in layer_range(label)])
            if len(layer_range(label)) > 1
            else jnp.full((1, 3), layer_range(label)[0])
            for label in layer_labels(layers)
        }
        out, written, others = jax.jit(
            partial(apply_layers, step=step, remat=remat, dtype="float32")
        )(layers, x_BTD=x, caches=caches)
        np.testing.assert_allclose(out, expected, rtol=1e-6)
        assert set(written) == set(others) == set(layer_labels(layers))
        for label, rest in others.items():
            wanted = [by_hand[i] for i in layer_range(label)]
            if wanted[0] is None:
                assert rest is None
            else:
                np.testing.assert_allclose(np.ravel(rest), wanted, rtol=1e-5)
                sums = np.reshape(written[label] - caches[label], (len(wanted), 3)).sum(-1)
                np.testing.assert_allclose(sums, wanted, rtol=1e-5)


EXPERTS = ExpertsConfig(num_experts=5, top_k=2, mlp_dim=24)
# One layer without RoPE in four, windows on the others, experts on every second layer.
PATTERN = (
    LayerKind(attention="window"),
    LayerKind(attention="window", mlp="experts"),
    LayerKind(attention="window", rope="local"),
    LayerKind(rope="none", mlp="experts"),
)


@pytest.mark.cases(1)
@pytest.mark.parametrize("num_layers", examples([4, 6, 8, 11], 8))
def test_model_of_many_layer_kinds_is_the_same_scanned_or_not(num_layers):
    model = random_model(
        num_layers=num_layers,
        pattern=PATTERN,
        attention=AttentionConfig(window=5),
        experts=EXPERTS,
        rope=RopeConfig(local_theta=100.0),
    )
    listed = with_scanned_layers(model, False)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 12))
    logits = jax.jit(lambda model: model(tokens).logits)
    assert relative_l2(logits(model), logits(listed)) < TOLERANCE
    again = named_parameters(with_scanned_layers(listed, True))
    assert again.keys() == named_parameters(model).keys()
    for name, variable in named_parameters(model).items():
        np.testing.assert_array_equal(again[name].get_value(), variable.get_value())


@pytest.mark.exhaustive
def test_kind_of_every_layer_matters():
    """Changing the kind of any one layer changes the logits."""
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (1, 12))
    changes = {"num_layers": 6, "attention.window": 5, "rope.local_theta": 100.0}
    kinds = tuple(dataclasses.replace(kind, mlp="dense") for kind in PATTERN)

    def logits(pattern):
        return jax.jit(lambda: random_model(pattern=pattern, **changes)(tokens).logits)()

    expected = logits(kinds)
    for i in range(len(kinds)):
        for other in (LayerKind(), kinds[i - 1]):
            if other != kinds[i]:
                changed = (*kinds[:i], other, *kinds[i + 1 :])
                assert relative_l2(logits(changed), expected) > 1e-3, (i, other)


def test_what_is_recomputed_changes_memory_but_not_the_gradients():
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (4, 128))
    memory, gradients = {}, {}
    for remat in get_args(Remat):
        bind, params = split(random_model(num_layers=4, remat=remat))
        gradient = jax.jit(jax.grad(lambda p, bind=bind: bind(p)(tokens).logits.std()))
        compiled = gradient.lower(params).compile()
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
        gradients[remat] = compiled(params)
    assert memory["full"] < memory["attention"] < memory["dots"] < memory["none"]
    for ours in gradients.values():
        chex.assert_trees_all_close(ours, gradients["none"], rtol=1e-5, atol=1e-7)


def test_offload_keeps_only_the_inputs_of_layers_on_the_host():
    """The scan over layers returns them, stacked, in the memory of the host, and nothing else."""
    L, B, T = 4, 2, 8
    bind, params = split(random_model(num_layers=L, remat="offload"))
    tokens = np.zeros((B, T), np.int32)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: bind(p)(tokens).logits.std()))(params)
    scans = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    saved = [out.aval for out in scans[0].outvars if out.aval.ndim == 4]
    assert [x.shape for x in saved] == [(L, B, T, TINY.embed_dim)]
    assert saved[0].memory_space == jax.memory.Space.Host


@pytest.mark.parametrize("kernel", ["blocks", "blocks of a split sequence", "splash", "triton"])
def test_each_attention_output_is_saved_once(kernel):
    """Kernels name theirs, which their gradients need: named again, it would be saved again."""
    L, B, T, N, H = 3, 2, 128, 4, 16
    shape = {"num_layers": L, "num_heads": N, "num_kv_heads": 2, "head_dim": H}
    name, *is_split = kernel.split(" of ")
    model = random_model({"attention.kernel": name}, **shape, max_len=T, remat="attention")
    bind, params = split(model)
    tokens = np.zeros((B, T), np.int32)
    mesh = make_mesh(sequence=2 if is_split else 1, devices=jax.devices())
    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: bind(p)(tokens).logits.std()))(params)
    scan = next(e for e in jaxpr.eqns if e.primitive.name == "scan")
    saved = [out.aval.size for out in scan.outvars]
    assert TINY.embed_dim != N * H
    assert saved.count(L * B * T * N * H) == 1


@pytest.mark.parametrize(
    ("label", "depths"), [("0", 1), ("5", 6), ("0:3", [1, 2, 3]), ("1:7:2", [2, 4, 6])]
)
def test_depths_of_layers_begin_with_one(label, depths):
    np.testing.assert_array_equal(layer_depths(label), depths)
