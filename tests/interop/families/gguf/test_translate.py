"""Models in GGUF files compute what the models that were written to them compute."""

import json

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gguf_files import KINDS, write_gguf
from safetensors.numpy import load_file
from tiers import examples
from tiny import relative_l2

from jaxllm.cli import main
from jaxllm.interop import CheckpointError, inspect, load_pretrained
from jaxllm.interop.families.gguf.translate import is_gguf, read_gguf
from jaxllm.interop.parity import check_checkpoint
from jaxllm.params import named_parameters

VOCAB, WIDTH, HEADS, GROUPS, HIDDEN, LAYERS = 96, 64, 4, 2, 96, 2
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
FIELDS = {
    "block_count": LAYERS,
    "context_length": 512,
    "embedding_length": WIDTH,
    "feed_forward_length": HIDDEN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": GROUPS,
    "attention.layer_norm_rms_epsilon": 2.0**-10,
    "rope.freq_base": 5000.0,
}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}
GEMMA = {"attention.key_length": 32, "attention.value_length": 32, "attention.sliding_window": 16}
GEMMA_CONFIG = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
# For each: the name in the file, the class of the config, its fields, and fields of the file.
CASES = {
    "llama": ("llama", "LlamaConfig", {"tie_word_embeddings": False}, {}),
    "mixtral": ("llama", "MixtralConfig", {"num_local_experts": 4}, EXPERTS),
    "qwen2": ("qwen2", "Qwen2Config", {"tie_word_embeddings": True}, {}),
    "qwen3": ("qwen3", "Qwen3Config", {"head_dim": 32}, {"attention.key_length": 32}),
    "qwen3_moe": (
        "qwen3moe",
        "Qwen3MoeConfig",
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        | {"norm_topk_prob": True},
        EXPERTS | {"attention.key_length": 32, "expert_feed_forward_length": 64},
    ),
    "phi3": ("phi3", "Phi3Config", {"sliding_window": 24}, {"attention.sliding_window": 24}),
    "gemma2": (
        "gemma2",
        "Gemma2Config",
        GEMMA_CONFIG | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
        GEMMA | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3": ("gemma3", "Gemma3TextConfig", GEMMA_CONFIG, GEMMA),
    "gpt2": ("gpt2", "GPT2Config", {}, {}),
    "olmo2": ("olmo2", "Olmo2Config", {}, {}),
    "smollm3": ("smollm3", "SmolLM3Config", {"num_hidden_layers": 5}, {"block_count": 5}),
}
GPT2_FIELDS = ("block_count", "context_length", "embedding_length", "feed_forward_length")
TOKENS = np.random.default_rng(3).integers(1, VOCAB, (1, 300))


def original(case: str):
    """The model of transformers with random numbers in every tensor."""
    _, config_class, changes, _ = CASES[case]
    theta = {"rope_theta": 5000.0, "rope_type": "default"}
    config = {**SIZES, "rms_norm_eps": 2.0**-10, "rope_parameters": theta}
    if case == "gemma3":
        local = {"rope_theta": 10_000.0, "rope_type": "default"}
        config["rope_parameters"] = {"full_attention": theta, "sliding_attention": local}
    if case == "gpt2":
        config = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
        config |= {"n_positions": 512, "n_inner": HIDDEN, "layer_norm_epsilon": 2.0**-10}
        config |= {"activation_function": "gelu_new", "attn_implementation": "eager"}
    made = getattr(transformers, config_class)(**{**config, **changes})
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    return randomized(model.eval())


def fields_of(case: str) -> dict:
    fields = {**FIELDS, **CASES[case][3]}
    if case == "gpt2":
        fields = {name: FIELDS[name] for name in (*GPT2_FIELDS, "attention.head_count")}
        fields["attention.layer_norm_epsilon"] = 2.0**-10
    return fields


def original_t5(cls: str, feed_forward: str, is_tied: bool):
    """T5 with random numbers in every tensor."""
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=24,
        d_ff=HIDDEN,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=HEADS,
        relative_attention_num_buckets=16,
        layer_norm_epsilon=2.0**-10,
        feed_forward_proj=feed_forward,
        tie_word_embeddings=is_tied,
        decoder_start_token_id=3,
    )
    model = getattr(transformers, cls)(config)
    if not is_tied:  # transformers 5 builds every T5 tied and only loads other heads
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, WIDTH))
        config.tie_word_embeddings = False
    return randomized(model.eval())


T5_FIELDS = {
    "block_count": 3,
    "decoder_block_count": 2,
    "context_length": 512,
    "embedding_length": WIDTH,
    "feed_forward_length": HIDDEN,
    "attention.head_count": HEADS,
    "attention.key_length": 24,
    "attention.value_length": 24,
    "attention.layer_norm_epsilon": 2.0**-10,
    "attention.layer_norm_rms_epsilon": 2.0**-10,
    "attention.relative_buckets_count": 16,
    "decoder_start_token_id": 3,
}


def randomized(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * drawn if is_norm else 0.15 * drawn)
    return model


def logits_of(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.cases(1)
@pytest.mark.parametrize("case", examples(CASES, "llama", "gemma2"))
def test_logits_are_those_of_the_model_that_was_written(case, tmp_path):
    model, file = original(case), tmp_path / "model.gguf"
    write_gguf(file, model, CASES[case][0], fields_of(case))
    ours = load_pretrained(file)
    assert relative_l2(ours(TOKENS).logits, logits_of(model)) < 3e-6


@pytest.mark.parametrize(
    ("name", "cls", "feed_forward", "is_tied"),
    [
        ("t5", "T5ForConditionalGeneration", "relu", True),
        ("t5", "T5ForConditionalGeneration", "gated-gelu", False),
        ("t5encoder", "T5EncoderModel", "gated-gelu", True),
    ],
)
def test_t5_is_the_model_that_transformers_saves(name, cls, feed_forward, is_tied, tmp_path):
    model, file = original_t5(cls, feed_forward, is_tied), tmp_path / "model.gguf"
    write_gguf(file, model, name, T5_FIELDS)
    model.save_pretrained(tmp_path / "saved")
    ours, expected = load_pretrained(file), load_pretrained(tmp_path / "saved")
    assert ours.config == expected.config
    arrays = named_parameters(ours)
    for each, variable in named_parameters(expected).items():
        assert np.array_equal(arrays.pop(each).get_value(), variable.get_value())
    assert not arrays


@pytest.mark.parametrize("case", examples(CASES, "llama", "gpt2"))
def test_tensors_of_a_quantized_file_are_those_of_the_written_model(case, tmp_path):
    """Transposed, fused and reordered tensors are decoded before anything else happens."""
    model, file = original(case), tmp_path / "model.gguf"
    write_gguf(file, model, CASES[case][0], fields_of(case), KINDS.Q8_0)
    _, _, tensors = read_gguf(file)
    for name, parameter in model.state_dict().items():
        if name in tensors:
            expected = parameter.numpy()
            assert relative_l2(tensors[name].read(), expected) < 0.01
            assert tensors[name].shape == expected.shape


@pytest.mark.parametrize("kind", examples(["Q4_K", "Q6_K", "Q5_1", "F16"], "Q4_K"))
def test_weights_are_those_of_transformers_bit_for_bit(kind, tmp_path):
    """transformers reads the same file by itself; only models that it reads fully are compared."""
    config = original("llama").config
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 512, 64
    model = transformers.AutoModelForCausalLM.from_config(config)
    file = tmp_path / "model.gguf"
    sizes = {"embedding_length": 256, "feed_forward_length": 512, "rope.dimension_count": 64}
    sizes["vocab_size"] = VOCAB
    write_gguf(file, model, "llama", {**FIELDS, **sizes}, KINDS[kind])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    _, _, tensors = read_gguf(file)
    assert tensors.keys() == theirs.state_dict().keys()
    for name, parameter in theirs.state_dict().items():
        assert tensors[name].read().tobytes() == parameter.numpy().tobytes()


def test_parity_takes_the_file_of_a_quantized_model(tmp_path):
    """transformers leaves what the file was in its config, although it decodes all tensors."""
    file, sizes = tmp_path / "model.gguf", {"rope.dimension_count": 16, "vocab_size": VOCAB}
    write_gguf(file, original("llama"), "llama", FIELDS | sizes, KINDS.Q8_0)
    report = check_checkpoint(file, levels=("weights", "config"), random=True)
    assert report.ok, report.table()
    assert all(row.ok for row in report.rows["config"])


def test_a_file_is_inspected_and_converted(tmp_path, capsys, caplog):
    model, file = original("llama"), tmp_path / "model.gguf"
    write_gguf(file, model, "llama", fields_of("llama"))
    report = inspect(file)
    assert report.ok, report.problems
    assert report.family == "llama"
    assert main(["inspect", str(file)]) == 0
    assert "model.layers.{0..1}.self_attn.q_proj.weight" in capsys.readouterr().out
    assert is_gguf(file)
    assert not is_gguf(tmp_path)
    assert main(["convert", str(file), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert "transformers cannot read its tokenizer: Cannot build" in caplog.text
    assert "; its tokenizer is not copied" in caplog.text
    back = load_file(tmp_path / "hf" / "model.safetensors")
    assert back.keys() == set(model.state_dict())


def test_an_exported_config_names_what_the_file_leaves_out(tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file, original("llama"), "llama", fields_of("llama"))
    _, config, _ = read_gguf(file)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_act"] == "silu"
    assert config["rope_theta"] == 5000.0
    json.dumps(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention.value_length": 8}, "attention.value_length=8 differs from the 16 of keys"),
        ({"attention.head_count": "many"}, "field attention.head_count='many' is not a size"),
        ({"attention.head_count_kv": 5}, "not divisible into 5 heads of pairs"),
        ({"attention.alibi": 5}, "field attention.alibi=5 is not understood"),
        ({"rope.scaling.type": "magic"}, "rope.scaling.type='magic' is not supported"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, change, message):
    file = tmp_path / "model.gguf"
    write_gguf(file, original("llama"), "llama", {**fields_of("llama"), **change})
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(file)
    assert error.value.problems[-1].startswith("load the checkpoint that this file was converted")


def test_unknown_architectures_and_tensors_are_named(tmp_path):
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "qwen4")
    writer.add_tensor("a.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"'qwen4' is not one of llama, .*mean 'qwen3'"):
        load_pretrained(file)
