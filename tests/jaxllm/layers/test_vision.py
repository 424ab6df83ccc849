"""Image encoder and image tokens: against PyTorch, on a mesh, and with invalid inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType
from tiny import TINY, random_model, relative_l2
from torch.nn import functional

from jaxllm.config import VisionConfig, from_dict, to_dict
from jaxllm.interop.reference.llm.vision import apply_rope, axial_rotations, pixel_shuffle
from jaxllm.layers.vision import (
    MaskedEmbedding,
    rotate_patches,
    scatter_rows,
    shuffle_pixels,
    split_patches,
)
from jaxllm.params import dim_letters, named_parameters, parameter_shardings, with_arrays

TOLERANCE = 2e-6  # relative L2, float32
VISION = VisionConfig(
    image_size=24,
    patch_size=2,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    mlp_dim=40,
    output_dim=24,
    shuffle=3,
    image_token=90,
)
EMBEDDINGS = (24 // 2 // 3) ** 2


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_patches_match_torch():
    images = draw(2, 3, 8, 12)
    expected = functional.unfold(torch.tensor(images), 4, stride=4).mT
    np.testing.assert_array_equal(split_patches(images, 4), expected)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_matches_the_original(factor):
    x = draw(2, 36, 5)
    expected = pixel_shuffle(torch.tensor(x), 6, 6, 1 / factor)
    np.testing.assert_array_equal(shuffle_pixels(x, factor), expected)


def test_patch_rotation_matches_the_original():
    side = VISION.image_size // VISION.patch_size
    x = draw(2, side * side + 1, 4, 8)
    turns = axial_rotations(side, side, 8, torch.float32)
    expected, _ = apply_rope(torch.tensor(x), torch.tensor(x), turns)
    found = np.asarray(rotate_patches(x, VISION))
    assert relative_l2(found, expected) < TOLERANCE
    np.testing.assert_array_equal(found[:, -1], x[:, -1])  # the class token


@pytest.fixture(scope="module")
def model():
    return random_model(vision=VISION)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    tokens = np.random.default_rng(1).integers(0, 90, (2, 40))
    tokens[0, 3 : 3 + EMBEDDINGS] = tokens[1, 20 : 20 + EMBEDDINGS] = 90
    return tokens


IMAGES = draw(2, 3, 24, 24, seed=2)


@jax.jit
def logits_of(model, tokens, image_embedding=None):
    return model(tokens, image_embedding=image_embedding).logits


def test_images_act_like_extra_tokens(model, tokens):
    """Images equal extra rows of the token table that hold the projected image embeddings."""
    image = model.embed_images(IMAGES, tokens)
    rows = model.image_proj(image.embedding_BTF[image.mask_BT][None])[0]
    wide = random_model(vision=VISION, vocab_size=TINY.vocab_size + len(rows))
    arrays = {name: v.get_value() for name, v in named_parameters(model).items()}
    arrays["embed.embedding"] = jnp.concatenate([arrays["embed.embedding"], rows])
    arrays["lm_head.kernel"] = jnp.pad(arrays["lm_head.kernel"], ((0, 0), (0, len(rows))))
    ids = tokens.copy()
    ids[tokens == 90] = TINY.vocab_size + np.arange(len(rows))
    expected = logits_of(with_arrays(wide, arrays), ids)[..., : TINY.vocab_size]
    assert relative_l2(logits_of(model, tokens, image), expected) < TOLERANCE


def test_scatter_rows_places_rows_in_order_and_zeros_elsewhere():
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 1]], bool)
    placed = scatter_rows(draw(4, 5), mask)
    np.testing.assert_array_equal(placed.embedding_BTF[mask], draw(4, 5))
    assert not np.any(placed.embedding_BTF[~mask])


@pytest.mark.parametrize("rows", [3, 5])
def test_wrong_number_of_rows_is_rejected(rows):
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 1]], bool)
    with pytest.raises(ValueError, match=f"{rows} embeddings of images for 4 image tokens"):
        scatter_rows(draw(rows, 5), mask)


def test_traced_mask_gives_nan_where_a_row_is_missing():
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 1]], bool)
    placed = jax.jit(scatter_rows)(draw(3, 5), mask)
    is_nan = np.isnan(placed.embedding_BTF).all(-1)
    assert is_nan.tolist() == [[False] * 4, [False, False, False, True]]


@pytest.mark.exhaustive
def test_image_encoder_and_projection_get_gradients(model, tokens):
    """Every parameter gets a finite, nonzero gradient, unaffected by values outside the mask."""

    def loss(model):
        return jnp.square(
            model(tokens, image_embedding=model.embed_images(IMAGES, tokens)).logits
        ).mean()

    gradient = jax.jit(jax.grad(loss))(model)
    for name, variable in named_parameters(gradient).items():
        value = np.asarray(variable.get_value())
        assert np.isfinite(value).all(), name
        # A bias common to all keys changes no attention probability.
        assert np.any(value) or name.endswith("k_proj.bias"), name


@pytest.mark.exhaustive
def test_sharded_image_encoder_computes_the_same(model, tokens):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    placed = parameter_shardings(model, mesh)
    arrays = {
        name: jax.device_put(variable.get_value(), placed[name])
        for name, variable in named_parameters(model).items()
    }
    split = {name for name, sharding in placed.items() if not sharding.is_fully_replicated}
    assert {"vision.adapter_in.kernel", "vision.adapter_out.kernel", "image_proj.kernel"} <= split
    assert dim_letters(named_parameters(model)["vision.layers.0:2.q_proj.kernel"]) == "LDNH"
    run = jax.jit(
        lambda model, tokens, images: (
            model(tokens, image_embedding=model.embed_images(images, tokens)).logits
        )
    )
    expected = run(model, tokens, IMAGES)
    with jax.set_mesh(mesh):
        found = run(with_arrays(model, arrays), tokens, IMAGES)
    assert relative_l2(found, expected) < TOLERANCE


def test_vision_config_round_trips_through_plain_data():
    config = dataclasses.replace(TINY, vision=VISION)
    assert from_dict(to_dict(config)) == config
    assert hash(config) != hash(TINY)


def test_images_of_the_wrong_size_are_rejected(model, tokens):
    with pytest.raises(ValueError, match=r"\(3, 24, 12\), not \(3, 24, 24\)"):
        model.embed_images(IMAGES[..., :12], tokens)


def test_model_without_vision_rejects_images(tokens):
    blind = random_model()
    given = MaskedEmbedding(draw(2, 40, 24), tokens == 90)
    with pytest.raises(ValueError, match="vision=None"):
        blind.embed_images(IMAGES, tokens)
    with pytest.raises(ValueError, match="without vision"):
        blind(tokens, image_embedding=given)
