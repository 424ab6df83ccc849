"""Llama 4's image encoder: both configs read and written, both sets of tensors named."""

import dataclasses
import json

import pytest
import torch
import transformers
from stored_shapes import shapes_in_model, shapes_in_rules
from tiny import TINY

from jaxllm.config import DecoderConfig, VisionConfig
from jaxllm.interop.families.common.config_fields import fields_read
from jaxllm.interop.families.common.fairscale import split_sizes, without_shards
from jaxllm.interop.families.common.fields import Fields
from jaxllm.interop.families.huggingface.multimodal.llama4_vision import (
    HF_NAMES,
    IMAGE_TOKEN,
    META_NAMES,
    VISION_SPLIT,
    read_hf_vision,
    read_meta_vision,
    unsupported_by_hf_vision,
    unsupported_by_meta_vision,
    vision_rules,
    vision_sizes,
    write_hf_vision,
    write_meta_vision,
)
from jaxllm.interop.reference.llm.arguments import ModelArgs
from jaxllm.interop.reference.llm.vision import VisionEmbeddings

# Sizes that differ from each other: a mix-up of axes changes a shape.
VISION = VisionConfig(
    **{"image_size": 24, "patch_size": 4, "embed_dim": 32, "num_layers": 3, "num_heads": 2},
    **{"mlp_dim": 128, "output_dim": 40, "image_token": 90},
)
CONFIG = dataclasses.replace(TINY, vision=VISION)
META = {
    "image_size": {"height": 24, "width": 24},
    "patch_size": {"height": 4, "width": 4},
    **{"dim": 32, "n_layers": 3, "n_heads": 2, "mlp_ratio": 4.0, "output_dim": 40},
    "pixel_shuffle_ratio": 0.5,
}
READS = fields_read("llama4_vision_model")


def read_meta(args: dict, vocab_size: int = 96) -> tuple[VisionConfig | None, list[str]]:
    """The encoder of `vision_args`, and all that is wrong with them."""
    fields = Fields({"vocab_size": vocab_size, "vision_args": args})
    found = read_meta_vision(fields)
    return found, fields.finish()


def as_hugging_face(vision: VisionConfig = VISION) -> dict:
    return json.loads(json.dumps(write_hf_vision(CONFIG, vision, {})))


def test_a_config_that_says_little_is_as_in_transformers():
    """But for the width, which does not fit the other defaults there: Scout's is 1408."""
    fields = Fields({"hidden_size": 1408}, READS)
    found, theirs = read_hf_vision(fields, 7), transformers.Llama4VisionConfig(hidden_size=1408)
    assert fields.finish() == []
    assert found == VisionConfig(
        image_size=theirs.image_size,
        patch_size=theirs.patch_size,
        num_channels=theirs.num_channels,
        embed_dim=theirs.hidden_size,
        num_layers=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        mlp_dim=theirs.intermediate_size,
        output_dim=theirs.vision_output_dim,
        shuffle=round(1 / theirs.pixel_shuffle_ratio),
        rope_theta=theirs.rope_parameters["rope_theta"],
        image_token=7,
    )


def test_hugging_face_s_config_comes_back():
    fields = Fields(as_hugging_face(), READS)
    assert read_hf_vision(fields, 90) == VISION
    assert fields.finish() == []
    again = transformers.Llama4VisionConfig(**as_hugging_face())
    assert again.hidden_size == 32
    kept = write_hf_vision(CONFIG, VISION, {"vision_feature_layer": -1, "dtype": "float32"})
    assert kept["vision_feature_layer"] == -1
    assert "dtype" not in kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"intermediate_size": 64}, "intermediate_size=64"),
        ({"pixel_shuffle_ratio": 0.4}, "pixel_shuffle_ratio=0.4"),
        ({"projector_input_dim": 48}, "projector_input_dim=48"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"is_causal": False}, "is_causal=False"),
    ],
    ids=str,
)
def test_what_hugging_face_s_config_may_not_say(changes, words):
    fields = Fields(as_hugging_face() | changes, READS)
    read_hf_vision(fields, 90)
    assert any(words in problem for problem in fields.finish())


def test_meta_s_arguments_come_back():
    """Its tokenizer's token for images counts if the vocabulary has it."""
    found, problems = read_meta(META)
    assert problems == []
    assert found == dataclasses.replace(VISION, image_token=None)
    assert read_meta(META, IMAGE_TOKEN + 1)[0].image_token == IMAGE_TOKEN
    assert write_meta_vision(found, {}) == META
    assert write_meta_vision(found, {"extra": 1}) == {**META, "extra": 1}
    assert write_meta_vision(None, META) is None
    assert read_meta_vision(Fields({"vocab_size": 9})) is None


@pytest.mark.parametrize("mlp_dim", [1, 31, 100, 127, 129])
def test_any_width_can_be_said_as_a_ratio(mlp_dim):
    """Which Meta's code multiplies and truncates."""
    vision = dataclasses.replace(VISION, mlp_dim=mlp_dim, image_token=None)
    for base in ({}, {"mlp_ratio": 4.0}):
        written = json.loads(json.dumps(write_meta_vision(vision, base)))
        assert read_meta(written)[0] == vision


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": {"height": 24, "width": 28}}, "height=24, width=28"),
        ({"pixel_shuffle_ratio": 0.0}, "pixel_shuffle_ratio=0.0"),
        ({"dim": "32"}, "dim='32'"),
    ],
    ids=str,
)
def test_what_meta_s_arguments_may_not_say(changes, words):
    _, problems = read_meta(META | changes)
    assert any(words in problem for problem in problems)


def test_what_either_cannot_say_is_named():
    def held(found: dict[str, bool]) -> list[str]:
        return [what for what, is_so in found.items() if is_so]

    def by_meta(**changes: object) -> list[str]:
        vision = dataclasses.replace(VISION, image_token=None, **changes)
        config: DecoderConfig = dataclasses.replace(TINY, vision=vision)
        return held(unsupported_by_meta_vision(config))

    assert held(unsupported_by_hf_vision(VISION)) == []
    other = dataclasses.replace(VISION, mlp_dim=64, image_token=None, norm_eps=1e-6)
    named = held(unsupported_by_hf_vision(other))
    assert len(named) == 3
    for words in ("mlp_dim=64", "image_token=None", "norm_eps=1e-06"):
        assert any(words in text for text in named)
    assert unsupported_by_meta_vision(TINY) == {}
    assert by_meta() == []
    for changes in ({"num_channels": 1}, {"norm_eps": 1e-6}, {"rope_theta": 5.0}):
        ((name, value),) = changes.items()
        [text] = by_meta(**changes)
        assert f"{name}={value}" in text
    [token] = held(unsupported_by_meta_vision(CONFIG))  # 90, in so small a vocabulary
    assert "image_token=90" in token


def test_hugging_face_s_tensors_are_those_of_transformers():
    config = transformers.Llama4Config(
        text_config={
            "hidden_size": 32,
            "num_hidden_layers": 0,
            "vocab_size": 96,
            "pad_token_id": 0,
        },
        vision_config=as_hugging_face(),
    )
    expected = shapes_in_model(lambda: transformers.Llama4ForConditionalGeneration(config))
    rules = map(without_shards, vision_rules(HF_NAMES))
    found = shapes_in_rules(rules, sizes_of(1))
    named = {name for name in expected if not name.startswith("language_model.")}
    assert found == {name: expected[name] for name in named}


def test_meta_s_tensors_are_those_of_the_reference():
    json_fields = {"dim": 32, "n_layers": 1, "n_heads": 4, "vocab_size": 9, "vision_args": META}
    args = ModelArgs.from_json(json_fields).vision_args
    expected = shapes_in_model(lambda: VisionEmbeddings(args))
    rules = map(without_shards, vision_rules(META_NAMES))
    found = shapes_in_rules(rules, sizes_of(1))
    assert found.pop("vision_projection.weight") == (32, 40)
    assert found == {f"vision_embeddings.{name}": shape for name, shape in expected.items()}


def test_a_shard_has_its_part_of_what_is_cut_and_copies_of_the_rest():
    found = shapes_in_rules(vision_rules(META_NAMES), sizes_of(2))
    whole = shapes_in_rules(map(without_shards, vision_rules(META_NAMES)), sizes_of(1))
    assert found.keys() == {f"{shard:02}/{name}" for shard in (0, 1) for name in whole}
    shares = {
        name: torch.Size(shape).numel() / torch.Size(found[f"01/{name}"]).numel()
        for name, shape in whole.items()
    }
    assert set(shares.values()) == {1.0, 2.0}
    block = "vision_embeddings.vision_encoder.transformer.resblocks.2."
    for name, share in {
        **{"attn.wq.weight": 2, "attn.wq.bias": 2, "attn.wo.weight": 2, "attn.wo.bias": 1},
        **{"mlp.c_fc.bias": 2, "mlp.c_proj.weight": 2, "mlp.c_proj.bias": 1, "ln_1.weight": 1},
    }.items():
        assert shares[block + name] == share


def sizes_of(shards: int) -> dict[str, int]:
    """The axes of the rules, of so many shards."""
    sizes = {**vision_sizes(VISION), "D": TINY.embed_dim}
    return split_sizes(sizes, shards, VISION_SPLIT)
