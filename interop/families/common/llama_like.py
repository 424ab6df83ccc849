"""Config fields and tensor rules shared by Hugging Face decoders.

Reads configs as transformers 4 or 5 writes them; writes those of transformers 4, which 5 reads.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxllm.config import Activation, DecoderConfig
from jaxllm.interop.rules.rule import Rule

from .decoder_axes import decoder_sizes, head_pairs
from .family import Layout, RuleTable
from .fields import Fields, Json

# By their names in transformers; of synonyms, the one that transformers writes comes first.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "sigmoid": "sigmoid",
}
IGNORED_TENSORS = {"model.layers.*.self_attn.rotary_emb.inv_freq": "derived from the config"}


def read_decoder(fields: Fields, activation: str = "hidden_act", **defaults: Any) -> Json:
    """Reads the fields that Llama-like decoders share, except RoPE.

    Args:
        fields: the config file.
        activation: the name of the field with the activation.
        defaults: the defaults of the family's config class that differ from Llama's, by the names
            of its fields.
    """

    def take(name: str, kind: type, default: object) -> object:
        return fields.take(name, kind, defaults.get(name, default))

    heads = fields.take("num_attention_heads", int)
    kv_heads = fields.take_nullable(
        "num_key_value_heads", int, defaults.get("num_key_value_heads", heads)
    )
    width = fields.take("hidden_size", int)
    return {
        "vocab_size": fields.take("vocab_size", int),
        "embed_dim": width,
        "num_layers": fields.take("num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": take("head_dim", int, width // max(heads, 1)),
        "mlp_dim": fields.take("intermediate_size", int),
        "max_len": take("max_position_embeddings", int, 2048),
        "mlp.activation": read_activation(fields, activation, defaults.get(activation, "silu")),
        "norms.eps": take("rms_norm_eps", float, 1e-6),
        "head.tied": take("tie_word_embeddings", bool, False),
        "init.std": take("initializer_range", float, 0.02),
    }


def read_attention_bias(fields: Fields, default: bool = False) -> Json:
    """Reads `attention_bias`, one field for all projections of attention."""
    bias = fields.take("attention_bias", bool, default)
    return {"attention.qkv_bias": bias, "attention.out_bias": bias}


def write_decoder(
    config: DecoderConfig,
    base: Json,
    model_type: str,
    architecture: str,
    activation: str = "hidden_act",
) -> Json:
    """Writes the fields of `read_decoder` over `base`, without those only transformers 5 has."""
    outdated = ("rope_parameters", "original_max_position_embeddings", "dtype")
    kept = {name: value for name, value in base.items() if name not in outdated}
    return {
        "architectures": [architecture],
        "pad_token_id": None,  # the class's default may lie outside the vocabulary
        **kept,
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        **write_activation(config, activation, base),
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norms.eps,
        "tie_word_embeddings": config.head.tied,
        "initializer_range": config.init.std,
        "torch_dtype": config.numerics.param_dtype,
    }


def read_activation(fields: Fields, name: str, default: str) -> Activation:
    """Reads the activation in the field `name`, by any of its names in transformers."""
    given = fields.take(name, str, default)
    if given not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        fields.problems.append(f"{name}={given!r} is not supported, only {known}")
        fields.refused[name] = default
        return ACTIVATIONS[default]
    return ACTIVATIONS[given]


def write_activation(config: DecoderConfig, name: str, base: Json) -> Json:
    """Writes the field of `read_activation`; keeps the name in `base` if it means the same."""
    if ACTIVATIONS.get(base.get(name, "")) == config.mlp.activation:
        return {name: base[name]}
    return {name: next(n for n, ours in ACTIVATIONS.items() if ours == config.mlp.activation)}


def outer_rules(config: DecoderConfig) -> list[Rule]:
    """Rules for the embedding, the final norm and, unless it is tied, the head."""
    return [*end_rules(), *head_rules(config)]


def head_rules(config: DecoderConfig) -> list[Rule]:
    """Rules for the head, unless it is tied."""
    return [] if config.head.tied else [Rule("lm_head.weight : V D", "lm_head.kernel : D V")]


def end_rules() -> list[Rule]:
    """Rules for the embedding and the final norm."""
    return [
        Rule("model.embed_tokens.weight : V D", "embed.embedding : V D"),
        Rule("model.norm.weight : D", "final_norm.scale : D"),
    ]


def tied_head(config: DecoderConfig) -> dict[str, str]:
    """Returns the tied head as a copy of the embedding, or nothing if it is not tied."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.head.tied else {}


def norm_rules(**names: str) -> list[Rule]:
    """Rules for the norms of a block, by name in the model: `attn_norm="input_layernorm"`."""
    return [
        Rule(f"model.layers.{{L}}.{theirs}.weight : D", f"layers.{{L}}.{ours}.scale : D")
        for ours, theirs in names.items()
    ]


def layer_norm_rules(theirs: str, ours: str) -> list[Rule]:
    """Rules for a LayerNorm with bias, by its stored name and its name in the model."""
    return [
        Rule(f"{theirs}.weight : D", f"{ours}.scale : D"),
        Rule(f"{theirs}.bias : D", f"{ours}.bias : D"),
    ]


def attention_rules(config: DecoderConfig, stored_pairs: str = "r h") -> list[Rule]:
    """Rules for separate projections under `self_attn`, with the config's biases and QK norms.

    `stored_pairs` are the axes of a rotated head as stored: "h r" if rotated pairs are adjacent.
    """
    theirs, ours, pairs = "model.layers.{L}.self_attn.", "layers.{L}.attn.", head_pairs(config)
    q, k = f"(N {stored_pairs})", f"(K {stored_pairs})"
    rules = [
        Rule(f"{theirs}q_proj.weight : {q} D", ours + "q_proj.kernel : D N " + pairs),
        Rule(f"{theirs}k_proj.weight : {k} D", ours + "k_proj.kernel : D K " + pairs),
        Rule(theirs + "v_proj.weight : (K H) D", ours + "v_proj.kernel : D K H"),
        Rule(theirs + "o_proj.weight : D (N H)", ours + "o_proj.kernel : N H D"),
    ]
    if config.attention.qkv_bias:
        rules += [
            Rule(f"{theirs}q_proj.bias : {q}", ours + "q_proj.bias : N " + pairs),
            Rule(f"{theirs}k_proj.bias : {k}", ours + "k_proj.bias : K " + pairs),
            Rule(theirs + "v_proj.bias : (K H)", ours + "v_proj.bias : K H"),
        ]
    if config.attention.out_bias:
        rules.append(Rule(theirs + "o_proj.bias : D", ours + "o_proj.bias : D"))
    if config.attention.qk_norm == "head":
        rules += [
            Rule(f"{theirs}q_norm.weight : ({stored_pairs})", ours + "q_norm.scale : " + pairs),
            Rule(f"{theirs}k_norm.weight : ({stored_pairs})", ours + "k_norm.scale : " + pairs),
        ]
    if config.attention.qk_norm == "each_head":
        rules += [
            Rule(f"{theirs}q_norm.weight : N ({stored_pairs})", ours + "q_norm.scale : N " + pairs),
            Rule(f"{theirs}k_norm.weight : K ({stored_pairs})", ours + "k_norm.scale : K " + pairs),
        ]
    if config.attention.qk_norm == "full":
        rules += [
            Rule(f"{theirs}q_norm.weight : {q}", ours + "q_norm.scale : N " + pairs),
            Rule(f"{theirs}k_norm.weight : {k}", ours + "k_norm.scale : K " + pairs),
        ]
    return rules


def gated_mlp_rules(
    config: DecoderConfig,
    layers: Sequence[int] | None = None,
    *,
    theirs: str = "mlp",
    ours: str = "mlp",
    width: str = "F",
) -> list[Rule]:
    """Rules for `gate_proj`, `up_proj` and `down_proj` under `theirs`, on all or these layers."""
    F, stored, model = width, f"model.layers.{{L}}.{theirs}.", f"layers.{{L}}.{ours}."
    sides = [
        (f"gate_proj.weight : {F} D", f"gate_proj.kernel : D {F}"),
        (f"up_proj.weight : {F} D", f"up_proj.kernel : D {F}"),
        (f"down_proj.weight : D {F}", f"down_proj.kernel : {F} D"),
    ]
    if config.mlp.bias:
        sides += [
            (f"gate_proj.bias : {F}", f"gate_proj.bias : {F}"),
            (f"up_proj.bias : {F}", f"up_proj.bias : {F}"),
            ("down_proj.bias : D", "down_proj.bias : D"),
        ]
    return [Rule(stored + left, model + right, layers=layers) for left, right in sides]


def with_prefix(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """Adds a prefix to the stored names, for a model that is part of another."""
    return [rule.with_stored(prefix + rule.stored.name) for rule in rules]


def decoder_table(config: DecoderConfig, rules: Iterable[Rule]) -> RuleTable:
    """Returns the table of a decoder with these rules."""
    return RuleTable(
        tuple(rules), decoder_sizes(config), tied=tied_head(config), ignored=IGNORED_TENSORS
    )


def llama_table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the table of a decoder whose tensors are named like Llama's."""
    return decoder_table(config, [*outer_rules(config), *block_rules(config)])


def llama_rules(config: DecoderConfig, layout: Layout, *, stored_pairs: str = "r h") -> list[Rule]:
    """Returns the rules of `llama_table` but for the head; see also `attention_rules`."""
    return [*end_rules(), *block_rules(config, stored_pairs)]


def block_rules(config: DecoderConfig, stored_pairs: str = "r h") -> list[Rule]:
    """Rules for the layers of a decoder whose tensors are named like Llama's."""
    return [
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config, stored_pairs),
        *gated_mlp_rules(config),
    ]


def layers_with_mlp(config: DecoderConfig, mlp: str) -> list[int]:
    """Returns the indices of the layers whose MLP is of this kind: "dense" or "experts"."""
    return [i for i, kind in enumerate(config.kinds) if kind.mlp == mlp]
