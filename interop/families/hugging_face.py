"""What the configs and tensors of Hugging Face's decoders have in common.

Configs are read in the spelling of transformers 4 or 5 and written in that of 4, which 5 reads.
"""

from collections.abc import Sequence

from jaxllm.config import DecoderConfig, RopeScaling
from jaxllm.interop.rules import Rule

from .family import Fields, Json, head_pairs

# Bookkeeping, token ids and generation settings: none of them bears on a forward pass.
IGNORED_FIELDS = (
    *("_name_or_path", "architectures", "model_type", "transformers_version", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "pretraining_tp"),
    *("output_attentions", "output_hidden_states", "return_dict", "problem_type"),
    *("id2label", "label2id", "chunk_size_feed_forward"),
    *("_attn_implementation_autoset", "transformers.js_config"),
)
IGNORED_TENSORS = {"model.layers.*.self_attn.rotary_emb.inv_freq": "derived from the config"}


def read_decoder(fields: Fields, **defaults: object) -> Json:
    """The fields that decoders of Llama's line share, all but RoPE.

    `defaults` are those of the family's config class, by its names, where they are not Llama's.
    """
    fields.ignore(*IGNORED_FIELDS)
    fields.require("attention_dropout", 0.0)
    fields.require("is_encoder_decoder", False)

    def take(name: str, kind: type, default: object) -> object:
        return fields.take(name, kind, defaults.get(name, default))

    heads = fields.take("num_attention_heads", int)
    width = fields.take("hidden_size", int)
    return {
        "vocab_size": fields.take("vocab_size", int),
        "embed_dim": width,
        "num_layers": fields.take("num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": take("num_key_value_heads", int, heads),
        "head_dim": take("head_dim", int, width // max(heads, 1)),
        "mlp_dim": fields.take("intermediate_size", int),
        "max_len": take("max_position_embeddings", int, 2048),
        "norm_eps": take("rms_norm_eps", float, 1e-6),
        "tie_embeddings": take("tie_word_embeddings", bool, False),
        "init_std": take("initializer_range", float, 0.02),
    }


def write_decoder(config: DecoderConfig, base: Json, model_type: str, architecture: str) -> Json:
    """The fields of `read_decoder` on top of those of `base` that are not of version 5 alone."""
    kept = {k: v for k, v in base.items() if k not in ("rope_parameters", "dtype")}
    return {
        "architectures": [architecture],
        **kept,
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "torch_dtype": config.param_dtype,
    }


def read_rope(fields: Fields, default_theta: float = 10000.0) -> Json:
    """Base and scaling from `rope_parameters` (v5), or `rope_theta` and `rope_scaling` (v4)."""
    theta = fields.take("rope_theta", float, default_theta)
    old, new = fields.take("rope_scaling", dict, {}), fields.take("rope_parameters", dict, {})
    rope = Fields(new or old)
    if old and new and old != new:
        fields.problems.append(f"rope_scaling={old!r} and rope_parameters={new!r} differ")
    rope.require("partial_rotary_factor", 1.0)
    theta = rope.take("rope_theta", float, theta)
    scaling = _read_scaling(rope)
    fields.problems += [f"RoPE: {problem}" for problem in rope.finish()]
    return {"rope_theta": theta, "rope_scaling": scaling}


def _read_scaling(rope: Fields) -> RopeScaling | None:
    kind = rope.take("rope_type", str, rope.take("type", str, "default"))
    if kind == "linear":
        return rope.build(RopeScaling, kind="linear", factor=rope.take("factor", float))
    if kind == "llama3":
        return rope.build(
            RopeScaling,
            kind="llama3",
            factor=rope.take("factor", float),
            low_freq_factor=rope.take("low_freq_factor", float),
            high_freq_factor=rope.take("high_freq_factor", float),
            original_max_len=rope.take("original_max_position_embeddings", int),
        )
    if kind != "default":
        rope.problems.append(f"rope_type={kind!r} is not supported, only default, linear or llama3")
    return None


def write_rope(config: DecoderConfig) -> Json:
    """The fields of `read_rope`, in the spelling of transformers 4."""
    return {"rope_theta": config.rope_theta, "rope_scaling": _write_scaling(config.rope_scaling)}


def _write_scaling(scaling: RopeScaling | None) -> Json | None:
    if scaling is None:
        return None
    rope: Json = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope["low_freq_factor"] = scaling.low_freq_factor
        rope["high_freq_factor"] = scaling.high_freq_factor
        rope["original_max_position_embeddings"] = scaling.original_max_len
    return rope


def outer_rules(config: DecoderConfig) -> list[Rule]:
    """The embedding, the last norm and, unless it is tied, the head."""
    rules = [
        Rule("model.embed_tokens.weight : V D", "embed.embedding : V D"),
        Rule("model.norm.weight : D", "final_norm.scale : D"),
    ]
    if not config.tie_embeddings:
        rules.append(Rule("lm_head.weight : V D", "lm_head.kernel : D V"))
    return rules


def tied_head(config: DecoderConfig) -> dict[str, str]:
    """The head as a copy of the embedding, if it is tied."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}


def norm_rules(**names: str) -> list[Rule]:
    """The norms of a block, each by its name in the model: `attn_norm="input_layernorm"`."""
    return [
        Rule(f"model.layers.{{L}}.{theirs}.weight : D", f"layers.{{L}}.{ours}.scale : D")
        for ours, theirs in names.items()
    ]


def attention_rules(config: DecoderConfig) -> list[Rule]:
    """Separate projections under `self_attn`, with the biases and norms that the config has."""
    theirs, ours, pairs = "model.layers.{L}.self_attn.", "layers.{L}.attn.", head_pairs(config)
    rules = [
        Rule(theirs + "q_proj.weight : (N r h) D", ours + "q_proj.kernel : D N " + pairs),
        Rule(theirs + "k_proj.weight : (K r h) D", ours + "k_proj.kernel : D K " + pairs),
        Rule(theirs + "v_proj.weight : (K H) D", ours + "v_proj.kernel : D K H"),
        Rule(theirs + "o_proj.weight : D (N H)", ours + "o_proj.kernel : N H D"),
    ]
    if config.qkv_bias:
        rules += [
            Rule(theirs + "q_proj.bias : (N r h)", ours + "q_proj.bias : N " + pairs),
            Rule(theirs + "k_proj.bias : (K r h)", ours + "k_proj.bias : K " + pairs),
            Rule(theirs + "v_proj.bias : (K H)", ours + "v_proj.bias : K H"),
        ]
    if config.attn_out_bias:
        rules.append(Rule(theirs + "o_proj.bias : D", ours + "o_proj.bias : D"))
    if config.qk_norm == "head":
        rules += [
            Rule(theirs + "q_norm.weight : (r h)", ours + "q_norm.scale : " + pairs),
            Rule(theirs + "k_norm.weight : (r h)", ours + "k_norm.scale : " + pairs),
        ]
    if config.qk_norm == "full":
        rules += [
            Rule(theirs + "q_norm.weight : (N r h)", ours + "q_norm.scale : N " + pairs),
            Rule(theirs + "k_norm.weight : (K r h)", ours + "k_norm.scale : K " + pairs),
        ]
    return rules


def gated_mlp_rules(config: DecoderConfig, layers: Sequence[int] | None = None) -> list[Rule]:
    """`gate_proj`, `up_proj` and `down_proj` under `mlp`, on these layers or on all."""
    theirs, ours = "model.layers.{L}.mlp.", "layers.{L}.mlp."
    sides = [
        ("gate_proj.weight : F D", "gate_proj.kernel : D F"),
        ("up_proj.weight : F D", "up_proj.kernel : D F"),
        ("down_proj.weight : D F", "down_proj.kernel : F D"),
    ]
    if config.mlp_bias:
        sides += [
            ("gate_proj.bias : F", "gate_proj.bias : F"),
            ("up_proj.bias : F", "up_proj.bias : F"),
            ("down_proj.bias : D", "down_proj.bias : D"),
        ]
    return [Rule(theirs + stored, ours + model, layers=layers) for stored, model in sides]


def layers_of(config: DecoderConfig, mlp: str) -> list[int]:
    """The layers whose MLP is of this kind: "dense" or "experts"."""
    return [i for i, kind in enumerate(config.kinds) if kind.mlp == mlp]
