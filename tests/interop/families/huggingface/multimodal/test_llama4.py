"""Llama 4 with its image encoder against transformers: images and text, and the round trip."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from decoder_family import DecoderFamily
from hf_case import LLAMA4, SIZES, Case, stored
from tiny import random_of, relative_l2

from jaxllm.config import with_fields
from jaxllm.generation import generate
from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.models import with_scanned_layers

TOLERANCE = 1e-5  # relative L2, float32
# Nine embeddings of an image.
LLAMA4_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 24,
    "patch_size": 4,
    "num_channels": 3,
    "vision_output_dim": 40,
    "projector_input_dim": 40,
    "projector_output_dim": 40,
    "pixel_shuffle_ratio": 0.5,
}

CASES = {
    "llama4": Case(
        "Llama4",
        {
            "text_config": {**SIZES, **LLAMA4},
            "vision_config": LLAMA4_VISION,
            "image_token_index": 90,
        },
        "Llama4ForConditionalGeneration",
        without=tuple(SIZES),
    ),
}
CASE = CASES["llama4"]
IMAGE_TOKEN = CASE.changes["image_token_index"]
EMBEDDINGS = 9  # per image


@pytest.fixture(scope="module")
def original():
    return CASE.build()


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama4") / "original"
    original.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained(folder)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((3, 3, 24, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Two images in one row and one in the other, at different positions."""
    tokens = np.random.default_rng(1).integers(0, IMAGE_TOKEN, (2, 320))
    tokens[0, 5 : 5 + EMBEDDINGS] = IMAGE_TOKEN
    tokens[0, 95 : 95 + EMBEDDINGS] = IMAGE_TOKEN
    tokens[1, 0:EMBEDDINGS] = IMAGE_TOKEN
    return tokens


@jax.jit
def logits_of(model, tokens, image_embedding=None):
    return model(tokens, image_embedding=image_embedding).logits


def their_logits(original, tokens, images=None) -> np.ndarray:
    pixels = None if images is None else torch.tensor(images)
    with torch.no_grad():
        return original(input_ids=torch.tensor(tokens), pixel_values=pixels).logits.numpy()


def test_image_embeddings_equal_transformers(original, model, images):
    with torch.no_grad():
        expected = original.vision_model(torch.tensor(images)).last_hidden_state.numpy()
    found = jax.jit(lambda model, images: model.vision(images))(model, images)
    assert found.shape == (3, EMBEDDINGS, LLAMA4_VISION["vision_output_dim"])
    assert relative_l2(found, expected) <= TOLERANCE


def test_logits_of_text_and_images_equal_transformers(original, model, images, tokens):
    found = logits_of(model, tokens, model.embed_images(images, tokens))
    assert relative_l2(found, their_logits(original, tokens, images)) <= TOLERANCE


def test_logits_of_text_only_equal_transformers(original, model, tokens):
    tokens = np.where(tokens == IMAGE_TOKEN, 7, tokens)
    assert relative_l2(logits_of(model, tokens), their_logits(original, tokens)) <= TOLERANCE


@pytest.mark.exhaustive
def test_unscanned_layers_compute_the_same(model, images, tokens):
    listed = with_scanned_layers(model, False)
    assert "0" in listed.vision.layers
    found = logits_of(listed, tokens, listed.embed_images(images, tokens))
    assert (
        relative_l2(found, logits_of(model, tokens, model.embed_images(images, tokens)))
        <= TOLERANCE
    )
    again = with_scanned_layers(listed, True)
    np.testing.assert_array_equal(
        logits_of(again, tokens, again.embed_images(images, tokens)),
        logits_of(model, tokens, model.embed_images(images, tokens)),
    )


def test_the_round_trip_is_bit_exact(original, folder, model, tmp_path):
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(folder)
    assert any(name.startswith("vision_model.") for name in stored(folder))
    loaded, info = transformers.Llama4ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name


def test_the_config_survives_the_round_trip(original, model, images, tokens, tmp_path):
    """Also without the original fields, and as transformers 4 writes it."""
    without = with_scanned_layers(with_scanned_layers(model, False), True)
    without.origin = None
    save_pretrained(without, tmp_path / "out", format="hf")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "rope_parameters" not in written["text_config"].keys() | written["vision_config"].keys()
    assert load_pretrained(tmp_path / "out").config == model.config
    rebuilt = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    assert type(rebuilt) is type(original)
    np.testing.assert_array_equal(
        their_logits(rebuilt, tokens, images), their_logits(original, tokens, images)
    )


@pytest.mark.exhaustive
def test_a_prompt_with_an_image_is_continued_from_the_cache(model, images, tokens):
    """Images replace tokens of the prompt; the continuation is text."""
    tokens = tokens[:, :130]
    image_embedding = model.embed_images(images, tokens)
    whole = logits_of(model, tokens, image_embedding)
    step = jax.jit(
        lambda model, tokens, positions, cache, image_embedding=None: model(
            tokens, positions=positions, cache=cache, image_embedding=image_embedding
        )
    )
    prompt = 110
    part = jax.tree.map(lambda x: x[:, :prompt], image_embedding)
    out = step(model, tokens[:, :prompt], np.arange(prompt)[None], model.init_cache(2, 130), part)
    logits = [out.logits]
    for t in range(prompt, 130):
        out = step(model, tokens[:, t : t + 1], np.full((2, 1), t), out.cache)
        logits.append(out.logits)
    assert relative_l2(np.concatenate(logits, axis=1), whole) <= TOLERANCE


@pytest.mark.exhaustive
def test_prompts_with_images_get_the_tokens_of_transformers(original, model, images, tokens):
    rows, seen = [tokens[0, :110].tolist(), tokens[1, :40].tolist()], [images[:2], images[2:]]
    found = generate(model, rows, 12, images=seen)
    for row, own, new in zip(rows, seen, found, strict=True):
        expected = original.generate(
            input_ids=torch.tensor([row]),
            pixel_values=torch.tensor(own),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        assert new == expected[0, len(row) :].tolist()


def test_a_tied_head_survives_the_round_trip(tmp_path, images, tokens):
    text = {**CASE.changes["text_config"], "tie_word_embeddings": True}
    original = dataclasses.replace(CASE, changes={**CASE.changes, "text_config": text}).build()
    original.save_pretrained(tmp_path / "original")
    model = load_pretrained(tmp_path / "original")
    assert model.config.head.tied
    found = logits_of(model, tokens, model.embed_images(images, tokens))
    assert relative_l2(found, their_logits(original, tokens, images)) <= TOLERANCE
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "original")
    rebuilt = transformers.Llama4ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert relative_l2(their_logits(rebuilt, tokens, images), found) <= TOLERANCE


RELEASED = {  # fields of Scout that the config class of transformers 5 lacks
    "text_config": {
        "_attn_implementation_autoset": True,
        "for_llm_compressor": False,
        "no_rope_layers": [],
        "attn_temperature_tuning": 4,
    },
    "vision_config": {"_attn_implementation_autoset": True, "vision_feature_layer": -1},
}


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def written(model, tmp_path) -> Path:
    """A folder that a test may damage."""
    save_pretrained(model, tmp_path / "written")
    return tmp_path / "written"


def test_fields_of_released_configs_are_read_and_kept(written, model, tmp_path):
    edit_config(written, lambda config: [config[k].update(v) for k, v in RELEASED.items()])
    again = load_pretrained(written)
    assert again.config == model.config
    save_pretrained(again, tmp_path / "out")
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert exported["text_config"]["for_llm_compressor"] is False
    assert exported["vision_config"]["vision_feature_layer"] == -1


@pytest.mark.cases(4)
@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("text_config", {"hidden_act": "mish"}, "text_config: hidden_act='mish'"),
        ("text_config", {"floor_scale": 0}, "floor_scale=0.0 is not positive"),
        ("text_config", {"no_rope_layers": [1, 0]}, "text_config: no_rope_layers=[1, 0]"),
        ("text_config", {"moe_layers": ["0"]}, "moe_layers holds ['0']"),
        ("text_config", {"num_experts_per_tok": 9}, "top_k=9 is above num_experts=5"),
        ("text_config", {"layer_types": ["sliding_attention"] * 4}, "sliding_attention"),
        ("text_config", {"is_causal": False}, "text_config: is_causal=False is not implemented"),
        ("vision_config", {"pixel_shuffle_ratio": 0.4}, "pixel_shuffle_ratio=0.4"),
        ("vision_config", {"projector_output_dim": 48}, "projector_output_dim=48"),
        ("vision_config", {"intermediate_size": 64}, "intermediate_size=64"),
        ("vision_config", {"image_size": 20}, "image_size=20 is not a multiple of patch_size=4"),
        ("vision_config", {"num_attention_heads": 3}, "multiple of 4 times num_heads=3"),
        ("vision_config", {"is_causal": False}, "vision_config: is_causal=False is not"),
    ],
    ids=str,
)
def test_problems_of_a_config_are_reported(part, changes, said, written):
    edit_config(written, lambda config: config[part].update(changes))
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(written)
    assert said in str(caught.value)


def test_a_model_with_an_image_encoder_is_not_written_without_it(model, tmp_path):
    """`llama4` does not support biases on queries only; its refusal is listed like all others."""
    changed = random_of(with_fields(model.config, {"attention.qkv_bias": True}))
    with pytest.raises(CheckpointError) as caught:
        save_pretrained(changed, tmp_path / "out")
    message = str(caught.value)
    assert "llama4: model_type 'llama4' does not support attention.qkv_bias without" in message
    assert "llama4_text: model_type 'llama4_text' does not support vision=VisionConfig(" in message


@pytest.mark.cases(4)
@pytest.mark.parametrize(
    "changes",
    [
        {"scores": "softmax"},
        {"scale": "output"},
        {"normalize": True},
        {"shared_mlp_dim": None},
        {"shared_mlp_dim": 24},
        {"router_bias": True},
        {"capacity": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("chosen", ["hf", "meta", "llm"])
def test_experts_that_llama4_does_not_have_are_refused(chosen, changes, model, tmp_path):
    experts = dataclasses.replace(model.config.experts, **changes)
    changed = random_of(dataclasses.replace(model.config, experts=experts))
    ((name, value),) = changes.items()
    with pytest.raises(CheckpointError) as caught:
        save_pretrained(changed, tmp_path / "out", format=chosen)
    lines = str(caught.value).splitlines()
    ours = [line for line in lines if line.strip().startswith(("llama4", "meta-llama:", "llm:"))]
    assert ours
    assert all(f"experts.{name}={value!r}" in line for line in ours)
    assert not (tmp_path / "out").exists()


class TestLlama4(DecoderFamily):
    cases = CASES
