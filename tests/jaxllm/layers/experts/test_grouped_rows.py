"""Functions of grouped rows equal those of single rows, in work and memory for real rows only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import relative_l2

from jaxllm.config import MlpConfig
from jaxllm.layers.experts.grouped_rows import SMALLEST, Blocking, Blocks, blocking, map_groups
from jaxllm.layers.experts.moe import ExpertMLP

TOLERANCE = 2e-6  # relative L2, float32
D, F = 24, 40
BLOCKING = Blocking(SMALLEST, 1)
COUNTS = {
    "few": [3, 0, 1, 8, 0],
    "one group": [0, 0, 2 * SMALLEST, 0, 0],
    "many": [SMALLEST, 1, 2 * SMALLEST + 5, 0, SMALLEST - 1],
    "none": [0, 0, 0],
}
MLP = ExpertMLP(MlpConfig(), "float32")


def draw(seed: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def params_of(E: int) -> dict:
    arrays = iter(draw(1, (E, D, F), (E, F), (E, D, F), (E, F), (E, F, D), (E, D)))
    return {name: (next(arrays), next(arrays)) for name in ("gate_proj", "up_proj", "down_proj")}


@pytest.mark.parametrize("after", examples([0, 7], 7), ids=lambda after: f"{after} after")
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_experts_of_grouped_rows_equal_those_of_single_rows(counts, after):
    """Covers values and every gradient; rows `after` the last group give zeros, even NaN."""
    after = after or (sum(counts) == 0)
    M, params = sum(counts) + after, params_of(len(counts))
    rows_MD, weight_M1, weights_MD = draw(0, (M, D), (M, 1), (M, D))
    rows_MD = rows_MD.at[sum(counts) :].set(jnp.nan)
    group = np.repeat(np.arange(len(counts)), counts)

    def one_by_one(params, rows):
        own = jax.tree.map(lambda x: x[group], params)
        rows = [x[: sum(counts), None] for x in rows]
        single = jax.vmap(MLP)(own, *rows)[:, 0] if len(group) else jnp.zeros((0, D))
        return jnp.pad(single, ((0, after), (0, 0)))

    def grouped(params, rows):
        return map_groups(MLP, BLOCKING, params, rows, jnp.asarray(counts))

    def both(apply):
        def value(params, rows):  # its terms cancel, so it is not compared itself
            out = apply(params, rows)
            return jnp.vdot(out, weights_MD), out

        gradients = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))
        return gradients(params, (rows_MD, weight_M1))

    for ours, theirs in zip(*map(jax.tree.leaves, map(both, (grouped, one_by_one))), strict=True):
        error = np.linalg.norm(ours - theirs)
        assert error <= TOLERANCE * np.linalg.norm(theirs) + 1e-30


@pytest.mark.parametrize(
    ("rows", "groups"),
    [(8192, 1), (32768, 16), (4096, 1), (65536, 128)],
    ids=["Mixtral, a device each", "128 experts on 8 devices", "Scout", "128 experts, one device"],
)
def test_few_more_rows_are_computed_than_there_are(rows, groups):
    size, expected = blocking(rows, groups)
    chosen = np.random.default_rng(0).integers(0, groups, rows)
    counts = jnp.bincount(jnp.asarray(chosen), length=groups)
    count = int(Blocks(counts, rows, size).count)
    assert rows <= count * size <= 1.25 * rows
    assert abs(count - expected) <= 0.1 * count


def test_memory_does_not_grow_with_the_number_of_groups():
    """XLA's own lowering of grouped matmuls on CPU would store every row once per group."""
    M, few, many = 256, 4, 64

    def temporary(count: int) -> int:
        counts = jnp.full(count, M // count)
        run = jax.jit(lambda params, rows: map_groups(MLP, BLOCKING, params, (rows,), counts))
        compiled = run.lower(params_of(count), jnp.zeros((M, D))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(many) < temporary(few) + M * D * 4


def test_no_array_between_products_has_all_rows():
    """F is large, so that one would show; gradients included."""
    M, wide = 2048, 512
    params = {
        "up_proj": (jnp.zeros((2, D, wide)), None),
        "down_proj": (jnp.zeros((2, wide, D)), None),
    }
    counts = jnp.asarray([M // 2, M // 2])

    def loss(params, rows):
        return map_groups(MLP, BLOCKING, params, (rows,), counts).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    compiled = gradient.lower(params, jnp.zeros((M, D))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < M * wide * 4


def test_kernel_gradient_is_not_rounded_to_the_activation_dtype():
    """Sums in bfloat16 would stall: 1 + 1/512 rounds to 1."""
    rows = jnp.asarray([[1.0], [1 / 512]], jnp.bfloat16)
    params = {name: (jnp.ones((1, 1, 1)), None) for name in ("up_proj", "down_proj")}
    relu, counts = ExpertMLP(MlpConfig(activation="relu"), "bfloat16"), jnp.asarray([2])

    def loss(params):
        return map_groups(relu, BLOCKING, params, (rows,), counts).sum()

    kernel, _ = jax.grad(loss)(params)["up_proj"]
    assert kernel.dtype == jnp.float32
    assert float(kernel[0, 0, 0]) == 1 + 1 / 512


def test_matrices_are_rounded_to_the_dtype_of_the_rows():
    params, (rows,) = params_of(3), draw(0, (20, D))
    counts, half = jnp.asarray([7, 5, 8]), ExpertMLP(MlpConfig(), "bfloat16")
    found = map_groups(half, BLOCKING, params, (rows.astype(jnp.bfloat16),), counts)
    assert found.dtype == jnp.bfloat16
    exact = map_groups(MLP, BLOCKING, params, (rows,), counts)
    assert 1e-3 < relative_l2(found.astype(jnp.float32), exact) < 2e-2
