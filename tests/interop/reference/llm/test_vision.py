"""The image encoder against Hugging Face Llama 4."""

import functools

import pytest
import torch
from tiny import relative_l2
from transformers import Llama4VisionConfig, Llama4VisionModel

from jaxllm.interop.reference.llm.arguments import Size, VisionArgs
from jaxllm.interop.reference.llm.vision import VisionEmbeddings, pixel_shuffle

ARGS = VisionArgs(
    image_size=Size(height=12, width=12),
    patch_size=Size(height=3, width=3),
    dim=32,
    n_layers=2,
    n_heads=4,
    mlp_ratio=4.0,  # the only ratio that Hugging Face's adapter allows
    output_dim=24,
    pixel_shuffle_ratio=0.5,
)
IMAGES = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1)).double()
PER_IMAGE = 4


def as_hugging_face(model: VisionEmbeddings) -> Llama4VisionModel:
    theirs = Llama4VisionModel(
        Llama4VisionConfig(
            hidden_size=ARGS.dim,
            num_hidden_layers=ARGS.n_layers,
            num_attention_heads=ARGS.n_heads,
            intermediate_size=128,
            vision_output_dim=ARGS.output_dim,
            projector_input_dim=ARGS.output_dim,
            projector_output_dim=ARGS.output_dim,
            image_size=12,
            patch_size=3,
            pixel_shuffle_ratio=0.5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )
    names = {
        "vision_encoder.conv1._linear": "patch_embedding.linear",
        "vision_encoder.ln_pre": "layernorm_pre",
        "vision_encoder.ln_post": "layernorm_post",
        "vision_encoder.transformer.resblocks": "model.layers",
        **{f".attn.w{x}": f".self_attn.{x}_proj" for x in "qkvo"},
        **{".ln_1": ".input_layernorm", ".ln_2": ".post_attention_layernorm"},
        **{".c_fc": ".fc1", ".c_proj": ".fc2", "vision_encoder.": ""},
    }
    theirs.load_state_dict(
        {
            functools.reduce(lambda key, pair: key.replace(*pair), names.items(), name): value
            for name, value in model.state_dict().items()
        }
    )
    return theirs.eval()


def test_embeddings_equal_hugging_face(draw):
    model = draw(VisionEmbeddings(ARGS)).float()
    theirs = as_hugging_face(model)
    images, mask = IMAGES.float(), torch.ones(1, 5 * PER_IMAGE, 1, dtype=torch.bool)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state.flatten(0, 1)
        assert relative_l2(model([[images]], mask)[0], expected) <= 1e-5


def test_each_sequence_gets_its_own_images_in_order(draw):
    model = draw(VisionEmbeddings(ARGS))
    mask = torch.zeros(3, 20, 1, dtype=torch.bool)
    mask[0, 1:5] = mask[0, 9:17] = mask[2, :6] = True
    batch = [[IMAGES[:1], IMAGES[1:3]], [], [IMAGES[3:]]]  # 1 tile and 2; none; 2
    found = model(batch, mask)
    assert found.dtype == torch.float64
    one = torch.ones(1, PER_IMAGE, 1, dtype=torch.bool)
    alone = torch.cat([model([[image[None]]], one)[0] for image in IMAGES])
    torch.testing.assert_close(found[0, mask[0, :, 0]], alone[:12], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[2, mask[2, :, 0]], alone[12:18], rtol=0, atol=1e-12)
    assert not found[~mask[..., 0]].any()
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_more_image_tokens_than_embeddings_are_an_error(draw):
    mask = torch.ones(1, PER_IMAGE + 1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="5 image tokens, but only 4 image embeddings"):
        draw(VisionEmbeddings(ARGS))([[IMAGES[:1]]], mask)


def test_pixel_shuffle_orders_left_before_right_and_upper_before_lower():
    rows, columns = 2, 4
    patches = torch.arange(rows * columns)[None, :, None].expand(1, -1, 2)
    found = pixel_shuffle(patches, rows, columns, 0.5)
    assert found.shape == (1, 2, 8)
    assert found[0].tolist() == [[0, 0, 1, 1, 4, 4, 5, 5], [2, 2, 3, 3, 6, 6, 7, 7]]
