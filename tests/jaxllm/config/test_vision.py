"""Invalid image encoder configs are rejected by full field name."""

import dataclasses

import pytest

from jaxllm.config import VisionConfig

VISION = VisionConfig(
    image_size=16,
    patch_size=4,
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    mlp_dim=24,
    output_dim=40,
)


def test_num_patches_counts_the_squares_of_an_image():
    assert VISION.num_patches == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": 0.0}, "vision.norm_eps=0.0 is not positive"),
        ({"num_layers": 0}, "vision.num_layers=0 is not positive"),
        ({"image_size": 20}, "vision.image_size=20 is not a multiple of patch_size=4 times"),
        ({"embed_dim": 12}, "vision.embed_dim=12 is not a multiple of 4 times num_heads=2"),
    ],
)
def test_invalid_image_encoder_is_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VISION, **changes)
