"""Projections and embeddings: values, gradients, initialization, precision and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType
from tiny import TINY, random_model, relative_l2

from jaxllm.config import ExpertsConfig, HeadConfig, LayerKind, NumericsConfig, with_fields
from jaxllm.layers.linear import Embedding, Linear
from jaxllm.sharding import named_sharding

TOLERANCE = 2e-6  # relative L2, float32

# Equation, kernel shape, letters of kernel and bias, input shape.
CASES = [
    ("BTD,DNH->BTNH", (12, 3, 4), "DNH", "NH", (2, 5, 12)),
    ("BTNH,NHD->BTD", (3, 4, 12), "NHD", "D", (2, 5, 3, 4)),
    ("BTD,DF->BTF", (12, 7), "DF", "F", (2, 5, 12)),
]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(equation: str, shape: tuple[int, ...], *, use_bias: bool, **changes) -> Linear:
    """Returns a projection with random kernel and bias."""
    config = with_fields(TINY, **changes)
    made = Linear(equation, shape, config=config, use_bias=use_bias, rngs=nnx.Rngs(0))
    made.kernel.set_value(jnp.asarray(draw(*shape, seed=1), config.numerics.param_dtype))
    if use_bias:
        bias = draw(*made.bias.get_value().shape, seed=2)
        made.bias.set_value(jnp.asarray(bias, config.numerics.param_dtype))
    return made


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("equation", "shape", "dims", "bias_dims", "x_shape"), CASES)
def test_linear_is_a_matrix_product_plus_bias(equation, shape, dims, bias_dims, x_shape, use_bias):
    layer, x = linear(equation, shape, use_bias=use_bias), draw(*x_shape)
    inner = 2 if equation.startswith("BTNH") else 1  # dimensions that are summed over
    width = np.prod(shape[:inner])
    matrix = torch.tensor(np.asarray(layer.kernel[...])).reshape(width, -1)
    expected = torch.tensor(x).reshape(2, 5, width) @ matrix
    assert layer.kernel.dims == dims
    assert (layer.bias is not None) == use_bias
    if use_bias:
        assert layer.bias.dims == bias_dims
        assert layer.bias.get_value().shape == shape[inner:]
        expected = expected + torch.tensor(np.asarray(layer.bias[...])).reshape(-1)
    assert relative_l2(layer(x), expected.reshape(2, 5, *shape[inner:])) < TOLERANCE


@pytest.mark.parametrize(("equation", "shape", "dims", "bias_dims", "x_shape"), CASES)
def test_gradients_match_torch(equation, shape, dims, bias_dims, x_shape):
    graphdef, state = nnx.split(linear(equation, shape, use_bias=True))
    x, weight = draw(*x_shape), draw(2, 5, *[shape[dims.index(dim)] for dim in bias_dims], seed=3)
    gradient = jax.jit(
        jax.grad(lambda state, x: jnp.vdot(nnx.merge(graphdef, state)(x), weight), argnums=(0, 1))
    )
    by_state, by_x = gradient(state, jnp.asarray(x))
    tensors = {name: torch.tensor(np.asarray(state[name].get_value())) for name in state}
    for tensor in (*tensors.values(), x_tensor := torch.tensor(x)):
        tensor.requires_grad_()
    y = torch.einsum(equation, x_tensor, tensors["kernel"]) + tensors["bias"]
    (y * torch.tensor(weight)).sum().backward()
    assert relative_l2(by_x, x_tensor.grad) < TOLERANCE
    for name, tensor in tensors.items():
        assert relative_l2(by_state[name].get_value(), tensor.grad) < TOLERANCE, name


def test_gradients_of_a_tied_head_match_torch():
    graphdef, state = nnx.split(random_model().embed)
    x, weight = draw(2, 5, TINY.embed_dim), draw(2, 5, TINY.vocab_size, seed=3)

    def loss(state, x):
        return jnp.vdot(nnx.merge(graphdef, state).attend(x), weight)

    by_state, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, jnp.asarray(x))
    table = torch.tensor(np.asarray(state["embedding"].get_value()), requires_grad=True)
    x_tensor = torch.tensor(x, requires_grad=True)
    (x_tensor @ table.T * torch.tensor(weight)).sum().backward()
    assert relative_l2(by_state["embedding"].get_value(), table.grad) < TOLERANCE
    assert relative_l2(by_x, x_tensor.grad) < TOLERANCE


def test_gradient_of_a_float32_kernel_is_not_rounded_to_the_activation_dtype():
    """Sums over many tokens stay in float32; bfloat16 would drop 16 bits."""
    graphdef, state = nnx.split(
        linear(
            "BTD,DF->BTF",
            (12, 7),
            use_bias=False,
            numerics=NumericsConfig(dtype="bfloat16", param_dtype="float32"),
        )
    )
    x = jnp.asarray(draw(4, 64, 12), jnp.bfloat16)

    def loss(state):
        return nnx.merge(graphdef, state)(x).astype(jnp.float32).sum()

    found = np.asarray(jax.jit(jax.grad(loss))(state)["kernel"].get_value())
    exact = np.asarray(x, np.float64).sum((0, 1))[:, None].repeat(7, 1)
    assert found.dtype == np.float32
    assert relative_l2(found, exact) < 1e-5
    assert (found != found.astype(jnp.bfloat16)).mean() > 0.5


def test_normal_kernels_have_the_configured_std_and_biases_are_zero():
    config = with_fields(TINY, {"init.std": 0.37})
    layer = Linear("BTD,DF->BTF", (64, 200), config=config, use_bias=True, rngs=nnx.Rngs(0))
    assert np.std(layer.kernel[...]) == pytest.approx(0.37, rel=0.02)
    assert (layer.bias[...] == 0).all()
    assert np.std(Embedding(96, config, rngs=nnx.Rngs(0)).embedding[...]) == pytest.approx(
        0.37, rel=0.1
    )


@pytest.mark.parametrize(
    ("equation", "shape", "fans"),
    [
        ("BTD,DNH->BTNH", (120, 6, 10), (120, 60)),
        ("BTNH,NHD->BTD", (6, 10, 120), (60, 120)),
        ("BTD,DF->BTF", (64, 200), (64, 200)),
    ],
)
def test_xavier_kernels_are_uniform_as_in_pytorch(equation, shape, fans):
    """Bound and standard deviation equal those of an `nn.Linear` of the same fans; biases are 0."""
    config = with_fields(TINY, {"init.kind": "xavier", "init.std": 0.37})
    layer = Linear(equation, shape, config=config, use_bias=True, rngs=nnx.Rngs(0))
    theirs = torch.empty(fans[1], fans[0])
    torch.nn.init.xavier_uniform_(theirs, generator=torch.Generator().manual_seed(0))
    kernel, bound = np.asarray(layer.kernel[...]), (6 / sum(fans)) ** 0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(float(theirs.std()), rel=0.03)
    assert kernel.mean() == pytest.approx(0, abs=0.03 * bound)
    assert (layer.bias[...] == 0).all()


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_low_precision_accumulates_in_float32(param_dtype):
    layer = linear(
        "BTD,DF->BTF",
        (256, 7),
        use_bias=True,
        numerics=NumericsConfig(dtype="bfloat16", param_dtype=param_dtype),
    )
    x = jnp.asarray(draw(2, 5, 256), jnp.bfloat16)
    kernel = np.asarray(layer.kernel[...].astype(jnp.bfloat16), np.float64)
    exact = np.asarray(x, np.float64) @ kernel + np.asarray(layer.bias[...], np.float64)
    sums = layer.accumulate(x)
    assert sums.dtype == jnp.float32
    assert relative_l2(sums, exact) < TOLERANCE
    out = layer(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, sums.astype(jnp.bfloat16))


def test_embedding_looks_up_and_attends_by_the_same_rows():
    embed = random_model().embed
    table, tokens = np.asarray(embed.embedding[...]), np.array([[3, 95, 0], [3, 1, 2]])
    np.testing.assert_array_equal(embed(tokens), table[tokens])
    x_BTD = draw(2, 3, TINY.embed_dim)
    assert relative_l2(embed.attend(x_BTD), x_BTD @ table.T) < TOLERANCE


def test_embedding_in_low_precision():
    embed = random_model(numerics=NumericsConfig(dtype="bfloat16")).embed
    table, tokens = embed.embedding[...], np.array([[3, 95, 0]])
    assert table.dtype == jnp.float32
    np.testing.assert_array_equal(embed(tokens), table[tokens].astype(jnp.bfloat16))
    logits = embed.attend(embed(tokens))
    assert logits.dtype == jnp.float32
    assert (logits != logits.astype(jnp.bfloat16)).mean() > 0.9


def test_sharded_table_gives_the_same_embeddings():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    embed = random_model().embed
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (8, 6))
    expected = embed(tokens)
    table = embed.embedding[...]
    embed.embedding.set_value(jax.device_put(table, named_sharding("VD", table.shape, mesh)))
    with jax.set_mesh(mesh):
        placed = jax.device_put(tokens, named_sharding("BT", tokens.shape, mesh))
        found = jax.jit(lambda embed, tokens: embed(tokens))(embed, placed)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", [-1, 11, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_refused_or_nan(wrong):
    config = with_fields(TINY, embed_dim=8)
    table = Embedding(11, config, rngs=nnx.Rngs(0))
    tokens = np.array([[3, 10, 0], [10, wrong, 4]], np.int32)
    known = r"token -?\d+ in row 1, position 1, is outside the vocabulary.* 0 to 10; 1 of 6"
    for given in (tokens, jnp.asarray(tokens)):
        with pytest.raises(ValueError, match=known):
            table(given)
    found = np.asarray(jax.jit(Embedding.__call__)(table, tokens))
    expected = np.asarray(table.embedding[...])[np.where(tokens == wrong, 0, tokens)]
    expected[1, 1] = np.nan
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"experts": ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24)},
        {"attention.window": 4},
        {"positions.kind": "alibi"},
    ],
    ids=str,
)
def test_only_what_sees_an_unknown_token_is_nan(fields):
    """Earlier tokens, other documents and other rows keep their logits, bit for bit."""
    kind = LayerKind(
        mlp="experts" if "experts" in fields else "dense",
        attention="window" if "attention.window" in fields else "full",
    )
    model = random_model({**fields, "pattern": (kind,)})
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (3, 12))
    wrong = tokens.copy()
    wrong[1, 5] = TINY.vocab_size
    segments = np.array([[1] * 8 + [2] * 4] * 3)
    run = jax.jit(lambda tokens: model(tokens, segment_ids=segments).logits)
    found, right = np.asarray(run(wrong)), np.asarray(run(tokens))
    is_nan = np.isnan(found).all(-1)
    assert is_nan[1, 5]
    sees = np.zeros_like(is_nan)
    sees[1, 5:8] = True
    if "attention.window" not in fields:
        np.testing.assert_array_equal(is_nan, sees)
    assert not (is_nan & ~sees).any()
    np.testing.assert_array_equal(found[~is_nan], right[~is_nan])


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_the_capped_scaled_products_with_bias(tied):
    model = random_model(head=HeadConfig(tied=tied, scale=0.5, softcap=3.0, bias=True))
    head = model.head()
    assert head.dims == ("VD" if tied else "DV")
    x_BTD = np.random.default_rng(0).standard_normal((2, 3, TINY.embed_dim)).astype(np.float32)
    kernel = np.asarray(head.kernel).T if tied else np.asarray(head.kernel)
    products = x_BTD @ kernel
    expected = 3 * np.tanh((0.5 * products + np.asarray(head.bias_V)) / 3)
    np.testing.assert_allclose(model.unembed(x_BTD), expected, rtol=1e-4, atol=1e-5)
    part = head.transform(jnp.asarray(products[..., 8:24]), head.bias_V[8:24])
    np.testing.assert_allclose(part, expected[..., 8:24], rtol=1e-4, atol=1e-5)
