"""OPT in the Hugging Face format: learned positions from the third row on, ReLU."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import (
    Part,
    activation,
    choice,
    fixed,
    setting,
    switch,
)
from jaxllm.interop.families.common.described.rules import (
    OUTPUT,
    attention_rules,
    embedding_rule,
    mlp_rules,
    norm_rules,
    position_rule,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.rules.rule import Rule

FIXED = {
    "norms.eps": 1e-5,
    "positions.kind": "learned",
    "positions.offset": 2,
    "mlp.gated": False,
}
BIASES = ("attention.qkv_bias", "attention.out_bias", "mlp.bias")
NAMES = {
    "intermediate_size": "ffn_dim",
    "initializer_range": "init_std",
}
PREFIX = "model.decoder."
UNLIKE = {PREFIX + "layers.*.self_attn@query": "it is scaled before attention"}


def read_placement(fields: Fields) -> Json:
    """Reads where norms are; the last one is that of norms before sublayers."""
    is_before = fields.take("do_layer_norm_before", bool, True)
    removed = fields.take("_remove_final_layer_norm", bool, False)
    return {
        "norms.placement": "pre" if is_before else "post",
        "norms.final": is_before and not removed,
    }


def write_placement(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_placement`."""
    is_before = config.norms.placement == "pre"
    return {
        "do_layer_norm_before": is_before,
        "_remove_final_layer_norm": is_before and not config.norms.final,
    }


def other_placement(config: DecoderConfig) -> dict[str, bool]:
    """Flags norms in other places."""
    placement, final = config.norms.placement, config.norms.final
    return {
        f"norms.placement={placement!r}": placement not in ("pre", "post"),
        "norms.placement='post' with norms.final=True": placement == "post" and final,
    }


def require_equal_width(fields: Fields) -> Json:
    """Checks that embeddings are as wide as the model: OPT-350M's are narrower."""
    fields.require("word_embed_proj_dim", None, fields.take("hidden_size", int))
    return {}


def write_equal_width(config: DecoderConfig, base: Json) -> Json:
    """Writes the width of the embeddings."""
    return {"word_embed_proj_dim": config.embed_dim}


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    theirs = PREFIX + "layers.{L}."
    norms = {"attn_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
    names = {f"layers.{{L}}.{ours}": theirs + name for ours, name in norms.items()}
    if config.norms.final:
        names["final_norm"] = PREFIX + "final_layer_norm"
    return [
        embedding_rule(PREFIX + "embed_tokens"),
        position_rule(PREFIX + "embed_positions"),
        *norm_rules(config, names),
        *attention_rules(config, theirs + "self_attn", names=OUTPUT),
        *mlp_rules(config, theirs, "fc1", "fc2"),
    ]


OPT = described_family(
    "opt",
    "OPTForCausalLM",
    (
        sizes(2048, has_head_dim=False, has_kv_heads=False, is_multi_head=True, names=NAMES),
        fixed(FIXED),
        Part(read_placement, write_placement, ("norms.placement", "norms.final"), other_placement),
        choice(
            "layer_norm_elementwise_affine",
            "norms.kind",
            {True: "layer", False: "layer_bare"},
            default=True,
        ),
        Part(require_equal_width, write_equal_width),
        switch("enable_bias", BIASES, default=True),
        setting("tie_word_embeddings", "head.tied", bool, True),
        activation("activation_function", "relu"),
    ),
    rules,
    axes=lambda config: {"M": config.positions.offset + config.max_len},
    unlike=UNLIKE,
    prefix=PREFIX,
)
