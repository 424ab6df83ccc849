"""Llama as Hugging Face writes it (`model_type: llama`): rotated pairs lie half a head apart."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig, RopeScaling
from jaxllm.interop.rules import Rule
from jaxllm.interop.tensors import StoredTensor

from .family import Family, Fields, Json, Layout, Table, decoder_sizes, head_pairs, refuse

# Bookkeeping, token ids and generation settings: none of them bears on a forward pass.
IGNORED_FIELDS = (
    *("_name_or_path", "architectures", "model_type", "transformers_version", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "pretraining_tp"),
    *("output_attentions", "output_hidden_states", "return_dict", "problem_type"),
    *("id2label", "label2id", "chunk_size_feed_forward", "is_llama_config"),
    *("_attn_implementation_autoset", "transformers.js_config"),
)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """The config of a `config.json`, in the spelling of transformers 4 or 5."""
    fields.require("hidden_act", "silu")
    fields.require("attention_dropout", 0.0)
    fields.require("is_encoder_decoder", False)
    fields.require("rope_interleaved", False)
    fields.ignore(*IGNORED_FIELDS)
    heads = fields.take("num_attention_heads", int)
    width = fields.take("hidden_size", int)
    theta, scaling = _read_rope(fields)
    bias = fields.take("attention_bias", bool, False)
    config = {
        "vocab_size": fields.take("vocab_size", int),
        "embed_dim": width,
        "num_layers": fields.take("num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": fields.take("num_key_value_heads", int, heads),
        "head_dim": fields.take("head_dim", int, width // max(heads, 1)),
        "mlp_dim": fields.take("intermediate_size", int),
        "max_len": fields.take("max_position_embeddings", int, 2048),
        "norm_eps": fields.take("rms_norm_eps", float, 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qkv_bias": bias,
        "attn_out_bias": bias,
        "mlp_bias": fields.take("mlp_bias", bool, False),
        "tie_embeddings": fields.take("tie_word_embeddings", bool, False),
        "init_std": fields.take("initializer_range", float, 0.02),
    }
    return config, Layout()


def _read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Base and scaling from `rope_parameters` (v5), or `rope_theta` and `rope_scaling` (v4)."""
    theta = fields.take("rope_theta", float, 10000.0)
    old, new = fields.take("rope_scaling", dict, {}), fields.take("rope_parameters", dict, {})
    rope = Fields(new or old)
    if old and new and old != new:
        fields.problems.append(f"rope_scaling={old!r} and rope_parameters={new!r} differ")
    rope.require("partial_rotary_factor", 1.0)
    theta = rope.take("rope_theta", float, theta)
    kind = rope.take("rope_type", str, rope.take("type", str, "default"))
    scaling = None
    if kind == "linear":
        scaling = rope.build(RopeScaling, kind="linear", factor=rope.take("factor", float))
    elif kind == "llama3":
        scaling = rope.build(
            RopeScaling,
            kind="llama3",
            factor=rope.take("factor", float),
            low_freq_factor=rope.take("low_freq_factor", float),
            high_freq_factor=rope.take("high_freq_factor", float),
            original_max_len=rope.take("original_max_position_embeddings", int),
        )
    elif kind != "default":
        rope.problems.append(f"rope_type={kind!r} is not supported, only default, linear or llama3")
    fields.problems += [f"RoPE: {problem}" for problem in rope.finish()]
    return theta, scaling


def write_config(config: DecoderConfig, base: Json) -> Json:
    """A `config.json` in the spelling of transformers 4, which 5 reads as well."""
    biases = ("qkv_bias", "attn_out_bias", "mlp_bias")
    refuse(
        "model_type 'llama'",
        config,
        ("rope_theta", "rope_scaling", "tie_embeddings", *biases),
        {"qkv_bias without attn_out_bias, or the reverse": config.qkv_bias != config.attn_out_bias},
    )
    kept = {k: v for k, v in base.items() if k not in ("rope_parameters", "dtype")}
    return {
        "architectures": ["LlamaForCausalLM"],
        **kept,
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _write_scaling(config.rope_scaling),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "torch_dtype": config.param_dtype,
    }


def _write_scaling(scaling: RopeScaling | None) -> Json | None:
    if scaling is None:
        return None
    rope: Json = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope["low_freq_factor"] = scaling.low_freq_factor
        rope["high_freq_factor"] = scaling.high_freq_factor
        rope["original_max_position_embeddings"] = scaling.original_max_len
    return rope


def table(config: DecoderConfig, layout: Layout) -> Table:
    """Every tensor of a Hugging Face Llama."""
    pairs = head_pairs(config)
    attn, mlp = "model.layers.{L}.self_attn.", "model.layers.{L}.mlp."
    rules = [
        Rule("model.embed_tokens.weight : V D", "embed.embedding : V D"),
        Rule("model.layers.{L}.input_layernorm.weight : D", "layers.{L}.attn_norm.scale : D"),
        Rule(attn + "q_proj.weight : (N r h) D", "layers.{L}.attn.q_proj.kernel : D N " + pairs),
        Rule(attn + "k_proj.weight : (K r h) D", "layers.{L}.attn.k_proj.kernel : D K " + pairs),
        Rule(attn + "v_proj.weight : (K H) D", "layers.{L}.attn.v_proj.kernel : D K H"),
        Rule(attn + "o_proj.weight : D (N H)", "layers.{L}.attn.o_proj.kernel : N H D"),
        Rule(
            "model.layers.{L}.post_attention_layernorm.weight : D", "layers.{L}.mlp_norm.scale : D"
        ),
        Rule(mlp + "gate_proj.weight : F D", "layers.{L}.mlp.gate_proj.kernel : D F"),
        Rule(mlp + "up_proj.weight : F D", "layers.{L}.mlp.up_proj.kernel : D F"),
        Rule(mlp + "down_proj.weight : D F", "layers.{L}.mlp.down_proj.kernel : F D"),
        Rule("model.norm.weight : D", "final_norm.scale : D"),
    ]
    if not config.tie_embeddings:
        rules.append(Rule("lm_head.weight : V D", "lm_head.kernel : D V"))
    if config.qkv_bias:
        rules += [
            Rule(attn + "q_proj.bias : (N r h)", "layers.{L}.attn.q_proj.bias : N " + pairs),
            Rule(attn + "k_proj.bias : (K r h)", "layers.{L}.attn.k_proj.bias : K " + pairs),
            Rule(attn + "v_proj.bias : (K H)", "layers.{L}.attn.v_proj.bias : K H"),
            Rule(attn + "o_proj.bias : D", "layers.{L}.attn.o_proj.bias : D"),
        ]
    if config.mlp_bias:
        rules += [
            Rule(mlp + "gate_proj.bias : F", "layers.{L}.mlp.gate_proj.bias : F"),
            Rule(mlp + "up_proj.bias : F", "layers.{L}.mlp.up_proj.bias : F"),
            Rule(mlp + "down_proj.bias : D", "layers.{L}.mlp.down_proj.bias : D"),
        ]
    return Table(
        rules=tuple(rules),
        sizes=decoder_sizes(config),
        tied={"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {},
        ignored={"model.layers.*.self_attn.rotary_emb.inv_freq": "derived from the config"},
    )


LLAMA = Family(
    name="llama",
    format="hf",
    storage="safetensors",
    config_file="config.json",
    model_type="llama",
    read_config=read_config,
    write_config=write_config,
    table=table,
)
