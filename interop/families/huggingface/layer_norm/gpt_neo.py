"""GPT-Neo in the Hugging Face format: GPT-2 with windows on every other layer, unscaled scores."""

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, fixed, setting
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
from jaxllm.interop.families.common.layer_types import shortest_pattern, unsupported_layers
from jaxllm.interop.rules.rule import Rule

FIXED = {
    "norms.kind": "layer",
    "positions.kind": "learned",
    "attention.scale": 1.0,
    "attention.out_bias": True,
    "mlp.gated": False,
    "mlp.bias": True,
}
NAMES = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
KINDS = {"global": LayerKind(), "local": LayerKind(attention="window")}
USUAL = [[["global", "local"], 12]]
PREFIX = "transformer."


def read_layers(fields: Fields) -> Json:
    """Reads `attention_types`, a list of names and how often they repeat."""
    names: list[str] = []
    for group in fields.take("attention_types", list, USUAL):
        match group:
            case [[*own], int(count)] if all(name in KINDS for name in own):
                names += own * count
            case _:
                fields.problems.append(
                    f"attention_types has {group!r}, not names ({', '.join(KINDS)}) and their count"
                )
    fields.require("attention_layers", None, names)
    count = fields.take("num_layers", int)
    if len(names) != count and not fields.problems:
        fields.problems.append(f"attention_types has {len(names)} names for {count} layers")
    window = fields.take("window_size", int, 256)
    return {
        "attention.window": window if "local" in names else None,
        "pattern": shortest_pattern([KINDS[name] for name in names]) or (LayerKind(),),
    }


def write_layers(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_layers`."""
    names = ["global" if kind.attention == "full" else "local" for kind in config.kinds]
    period = len(config.pattern)
    times, rest = divmod(config.num_layers, period)
    return {
        "attention_types": [[names, 1]] if rest else [[names[:period], times]],
        "attention_layers": names,
        "window_size": config.attention.window or base.get("window_size", 256),
    }


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    theirs, ours = PREFIX + "h.{L}.", "layers.{L}."
    return [
        embedding_rule(PREFIX + "wte"),
        position_rule(PREFIX + "wpe"),
        *norm_rules(
            config,
            {
                "final_norm": PREFIX + "ln_f",
                ours + "attn_norm": theirs + "ln_1",
                ours + "mlp_norm": theirs + "ln_2",
            },
        ),
        *attention_rules(config, theirs + "attn.attention", names=OUTPUT),
        *mlp_rules(config, theirs + "mlp.", "c_fc", "c_proj"),
    ]


GPT_NEO = described_family(
    "gpt_neo",
    "GPTNeoForCausalLM",
    (
        sizes(
            2048,
            has_head_dim=False,
            has_kv_heads=False,
            is_multi_head=True,
            has_mlp_dim=False,
            names=NAMES,
        ),
        setting("layer_norm_epsilon", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, True),
        activation("activation_function", "gelu_new"),
        fixed(FIXED),
        Part(
            read_layers,
            write_layers,
            ("attention.window", "pattern"),
            lambda config: unsupported_layers(
                config, attention=("full", "window"), rope=("global",), mlp=("dense",)
            ),
        ),
    ),
    rules,
    axes=lambda config: {"M": config.max_len},
    prefix=PREFIX,
    embedding="wte.weight",
)
