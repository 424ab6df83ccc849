"""The text part of multimodal models: logits of transformers, and every other tensor kept."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from hf_case import SIZES, randomize, stored
from safetensors.torch import save_file
from tiers import examples, exhaustive
from tiny import relative_l2

from jaxllm.interop import CheckpointError, convert, load_pretrained, save_pretrained, verify
from jaxllm.interop.families.huggingface.multimodal.multimodal import MULTIMODAL
from jaxllm.interop.parity.checkpoint import check_checkpoint

TEXT = {**SIZES, "num_hidden_layers": 2, "head_dim": 8}
WIDE = {**TEXT, "head_dim": 16}
LAYER_TYPES = ["sliding_attention", "full_attention"]
BY_WIDTH = {name: TEXT[name] for name in TEXT if name != "head_dim"}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
CLIP = {**SMALL, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TOKENS = {"image_token_id": 90, "video_token_id": 91}
TOKENS |= {"vision_start_token_id": 92, "vision_end_token_id": 93}
QWEN_IMAGE = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 30000.0}
QWEN3_ROPE = {**MROPE, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
# The prefix of the classes, and the arguments of the config.
CASES = {
    "gemma3": (
        "Gemma3",
        {
            "text_config": {**WIDE, "sliding_window": 64, "layer_types": LAYER_TYPES},
            "vision_config": {**CLIP, "model_type": "siglip_vision_model"},
            **{"mm_tokens_per_image": 4, "image_token_index": 95},
        },
    ),
    "mistral3": (
        "Mistral3",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**CLIP, "model_type": "pixtral", "head_dim": 8},
            **{"image_token_index": 95, "tie_word_embeddings": False},
        },
    ),
    "llava": (
        "Llava",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**CLIP, "model_type": "clip_vision_model"},
            "image_token_index": 95,
        },
    ),
    "llava, qwen2": (
        "Llava",
        {
            "text_config": {**BY_WIDTH, "model_type": "qwen2", "tie_word_embeddings": True},
            "vision_config": {**CLIP, "model_type": "clip_vision_model"},
            "image_token_index": 95,
        },
    ),
    "qwen2_vl": (
        "Qwen2VL",
        {
            "text_config": {**BY_WIDTH, "rope_parameters": MROPE},
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2},
            **{**TOKENS, "tie_word_embeddings": True},
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "text_config": {**BY_WIDTH, "rope_parameters": MROPE},
            "vision_config": {**QWEN_IMAGE, "out_hidden_size": 48},
            **TOKENS,
        },
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "text_config": {**WIDE, "rope_parameters": QWEN3_ROPE},
            "vision_config": {
                **{**QWEN_IMAGE, "depth": 2, "out_hidden_size": 48},
                "deepstack_visual_indexes": [0],
            },
            **TOKENS,
        },
    ),
}
QUICK = ("qwen2_5_vl",)


def build(name, **changes):
    prefix, arguments = CASES[name]
    config = getattr(transformers, f"{prefix}Config")(**{**arguments, **changes})
    return randomize(getattr(transformers, f"{prefix}ForConditionalGeneration")(config)).eval()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens)).logits.numpy()


TEXT_TOKENS = np.random.default_rng(0).integers(3, 90, (2, 320))


def test_every_row_has_a_case():
    assert {name.partition(",")[0] for name in CASES} == {family.name for family in MULTIMODAL}


@pytest.mark.cases(1, exhaustive=3)
@pytest.mark.parametrize("name", examples(CASES, *QUICK))
def test_logits_of_text_match_and_everything_goes_back(name, tmp_path):
    original, folder = build(name), tmp_path / "original"
    original.save_pretrained(folder)
    expected = logits_of(original, TEXT_TOKENS)
    shutil.copytree(folder, tmp_path / "memory")
    in_memory = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    save_file(in_memory, tmp_path / "memory" / "model.safetensors", metadata={"format": "pt"})
    for path in (folder, tmp_path / "memory"):  # names of transformers 4, and those of 5
        model = load_pretrained(path)
        assert relative_l2(model(TEXT_TOKENS).logits, expected) <= 1e-5
        save_pretrained(model, tmp_path / "out")
        save_pretrained(model, tmp_path / "native", format="native")
        convert(tmp_path / "native", tmp_path / "back")
        assert stored(tmp_path / "out") == stored(tmp_path / "back") == stored(path)
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config == json.loads((path / "config.json").read_text())
        assert verify(path).ok
        for made in ("out", "native", "back"):
            shutil.rmtree(tmp_path / made)


@pytest.mark.cases(0, exhaustive=3)
@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("gemma3", ["weights", "config"]),
        *exhaustive([(name, ["weights", "config", "logits", "layers"]) for name in CASES]),
    ],
)
def test_parity_compares_the_text_part(name, levels, tmp_path):
    build(name).save_pretrained(tmp_path)
    report = check_checkpoint(tmp_path, levels=levels, tokens=TEXT_TOKENS)
    assert report.ok, report


@pytest.mark.exhaustive
def test_sizes_that_are_left_out_are_those_of_the_class(tmp_path):
    """The config of Gemma 3 names hardly any size of its text part."""
    text = {"hidden_size": 64, "intermediate_size": 56, "num_hidden_layers": 1, "vocab_size": 96}
    original = build("gemma3", text_config={**text, "model_type": "gemma3_text"})
    original.save_pretrained(tmp_path / "original")
    file = tmp_path / "original" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "text_config": {**text, "model_type": "gemma3_text"}}))
    model = load_pretrained(file.parent)
    stack = model.config
    assert (stack.num_heads, stack.num_kv_heads, stack.head_dim) == (8, 4, 256)
    expected = logits_of(original, TEXT_TOKENS)
    assert relative_l2(model(TEXT_TOKENS).logits, expected) <= 1e-5
    save_pretrained(model, tmp_path / "out")
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(logits_of(again.eval(), TEXT_TOKENS), expected)


def test_the_text_config_may_be_the_config_itself(tmp_path):
    """So the released Qwen2.5-VL has it, with `mrope_section` in `rope_scaling`."""
    original = build("qwen2_5_vl")
    original.save_pretrained(tmp_path / "original")
    file = tmp_path / "original" / "config.json"
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": [1, 1, 2]}
    flat = {**text, **config, "rope_scaling": scaling, "rope_theta": 30000.0}
    file.write_text(json.dumps(flat))
    reread = type(original).from_pretrained(file.parent).eval()
    expected = logits_of(reread, TEXT_TOKENS)
    model = load_pretrained(file.parent)
    assert relative_l2(model(TEXT_TOKENS).logits, expected) <= 1e-5
    save_pretrained(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == flat
    assert stored(tmp_path / "out") == stored(file.parent)


@pytest.mark.exhaustive
def test_a_head_that_differs_is_untied(tmp_path, caplog):
    original = build("gemma3")
    state = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    state["lm_head.weight"] = torch.randn(96, 48, generator=torch.Generator().manual_seed(1))
    original.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference = type(original).from_pretrained(tmp_path).eval()
    found = load_pretrained(tmp_path)(TEXT_TOKENS).logits
    assert relative_l2(found, logits_of(reference, TEXT_TOKENS)) <= 1e-5
    assert "the head differs from the embedding: loaded as untied" in caplog.text


def test_without_its_image_encoder_the_text_is_a_model_of_its_own(tmp_path, caplog):
    original = build("gemma3")
    original.save_pretrained(tmp_path / "original")
    model = load_pretrained(tmp_path / "original")
    expected = logits_of(original, TEXT_TOKENS)
    shutil.rmtree(tmp_path / "original")
    save_pretrained(model, tmp_path / "out")
    assert "written without them, as gemma3_text" in caplog.text
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(alone).__name__ == "Gemma3ForCausalLM"
    assert relative_l2(logits_of(alone, TEXT_TOKENS), expected) <= 1e-6


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ({"model_type": "mamba"}, "text_config: model_type 'mamba' is not supported, only llama"),
        ({"model_type": "llama", "hidden_act": "tanh"}, "text_config: hidden_act='tanh'"),
        (3, "text_config=3 is not an object"),
    ],
)
def test_a_text_part_that_cannot_be_read_is_named(tmp_path, text, problem):
    build("llava").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    given = {**config["text_config"], **text} if isinstance(text, dict) else text
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": given}))
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained(tmp_path)
