"""Layer arguments and tensor rules shared by the three `components` models over vectors."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config import ExpertsConfig, LayerKind, StackConfig
from jaxllm.interop.families.common.family import in_order, without_type
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import layer_norm_rules
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.families.common.unsupported import unsupported_by_head_dim, unsupported_values
from jaxllm.interop.rules.rule import Rule

# Settings of every layer, whatever the arguments: post-norm, sinusoids, biases everywhere.
FIXED: Json = {
    "norms.kind": "layer",
    "norms.placement": "post",
    "norms.eps": 1e-5,
    "norms.final": False,
    "positions.kind": "sinusoidal",
    "positions.waves": "power",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.activation": "relu",
    "mlp.gated": False,
    "mlp.bias": True,
}
SUPPORTED = (*FIXED, "attention.causal", "experts", "pattern")
ATTENTIONS = ("mha", "mqa", "gqa")


def read_layers(fields: Fields) -> Json:
    """Reads the layers' arguments. `use_kv_cache` is ignored: it is about running the model."""
    fields.ignore("model_type", "use_kv_cache")
    width, heads = fields.take("embed_dim", int), fields.take("num_heads", int)
    if heads and width % heads:
        fields.problems.append(f"embed_dim={width} is not a multiple of num_heads={heads}")
    mlp_dim = fields.take("ffn_latent_dim", int)
    experts = _read_ffn(fields, width, mlp_dim)
    return {
        **FIXED,
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": _read_groups(fields, heads),
        "head_dim": width // max(heads, 1),
        "mlp_dim": mlp_dim,
        "max_len": fields.take("max_seq_len", int),
        "experts": experts,
        "pattern": (_kind(experts),),
    }


def _kind(experts: ExpertsConfig | None) -> LayerKind:
    """Returns the kind of every layer."""
    return LayerKind(mlp="dense" if experts is None else "experts")


def _read_groups(fields: Fields, heads: int) -> int:
    """Reads the number of key/value heads; only "gqa" uses `num_groups`."""
    fields.require("attention_type", *ATTENTIONS)
    kind, groups = fields.take("attention_type", str, "mha"), fields.take("num_groups", int, None)
    count = num_groups(kind, heads, groups)
    if count < 1 or heads % count:
        fields.problems.append(f"num_heads={heads} is not a multiple of num_groups={count}")
    return count


def num_groups(kind: str, heads: int, groups: int | None) -> int:
    """Returns the number of key/value heads of a kind of attention."""
    usual = {"mha": heads, "mqa": 1}.get(kind, max(1, heads // 2))
    return usual if groups is None or kind != "gqa" else groups


def _read_ffn(fields: Fields, width: int, mlp_dim: int) -> ExpertsConfig | None:
    """Reads the experts from `ffn_config`, or returns None if it has none."""
    with fields.part("ffn_config") as ffn:
        for name, wanted in {"embed_dim": width, "latent_dim": mlp_dim}.items():
            if (given := ffn.take(name, int, wanted)) != wanted:
                ffn.problems.append(f"{name}={given}, but the model has {wanted}")
        names = ("num_experts", "capacity", "alpha", "topk")
        if not ffn.take("use_moe", bool, False):
            ffn.ignore(*names)
            return None
        return ffn.build(
            ExpertsConfig,
            num_experts=ffn.take("num_experts", int),
            capacity=ffn.take("capacity", int),
            aux_weight=ffn.take("alpha", float, 0.01),
            top_k=ffn.take("topk", int, 1),
            mlp_dim=mlp_dim,
            normalize=True,
            router_bias=True,
            balance="kept",
        )


def write_layers(config: StackConfig, base: Json) -> Json:
    """Writes the arguments of `read_layers`; `num_groups` only if it was given or is needed."""
    heads, groups = config.num_heads, config.num_kv_heads
    kind, given = base.get("attention_type", "mha"), base.get("num_groups")
    if num_groups(kind, heads, given) != groups:
        kind = {heads: "mha", 1: "mqa"}.get(groups, "gqa")
        given = groups
    json = {
        "embed_dim": config.embed_dim,
        "ffn_latent_dim": config.mlp_dim,
        "num_heads": heads,
        "max_seq_len": config.max_len,
        "attention_type": kind,
        "ffn_config": {**(base.get("ffn_config") or {}), **_write_ffn(config)},
    }
    return json if given is None else {**json, "num_groups": given}


def _write_ffn(config: StackConfig) -> Json:
    experts = config.experts
    sizes = {"embed_dim": config.embed_dim, "latent_dim": config.mlp_dim}
    if experts is None:
        return {**sizes, "use_moe": False}
    return {
        **sizes,
        "use_moe": True,
        "num_experts": experts.num_experts,
        "capacity": experts.capacity,
        "alpha": experts.aux_weight,
        "topk": experts.top_k,
    }


def unsupported(config: StackConfig) -> dict[str, bool]:
    """Flags values that the arguments do not support."""
    return {
        **unsupported_values(config, FIXED),
        f"pattern={config.pattern}": set(config.kinds) != {_kind(config.experts)},
        **unsupported_by_head_dim(config),
        **_unsupported_experts(config),
    }


def _unsupported_experts(config: StackConfig) -> dict[str, bool]:
    experts = config.experts
    if experts is None:
        return {}
    return {
        f"experts.scores={experts.scores!r}": experts.scores != "softmax",
        f"experts.scale={experts.scale!r}": experts.scale != "output",
        f"experts.balance={experts.balance!r}": experts.balance != "kept",
        f"experts.shared_mlp_dim={experts.shared_mlp_dim}": experts.shared_mlp_dim is not None,
        f"experts.mlp_dim={experts.mlp_dim}": experts.mlp_dim != config.mlp_dim,
        "experts.capacity=None": experts.capacity is None,
        "experts.normalize=False": not experts.normalize,
        "experts.router_bias=False": not experts.router_bias,
    }


def layer_rules(
    theirs: str, ours: str, config: StackConfig, *, attn: str = "attn", norm: str = "norm"
) -> list[Rule]:
    """Rules for all layers of a stack, by its stored name and its name in the model."""
    names = ["attn_norm", *(["cross_norm"] if config.attention.cross else []), "mlp_norm"]
    rules = _attention_rules(f"{theirs}.{attn}", f"{ours}.attn")
    if config.attention.cross:
        rules += _attention_rules(f"{theirs}.cross_attention", f"{ours}.cross_attn")
    for i, name in enumerate(names):
        rules += layer_norm_rules(f"{theirs}.{norm}_{i + 1}", f"{ours}.{name}")
    return [*rules, *_ffn_rules(f"{theirs}.ffn", f"{ours}.mlp", config)]


def _attention_rules(theirs: str, ours: str) -> list[Rule]:
    heads = {"q_proj": "(N H)", "k_proj": "(K H)", "v_proj": "(K H)"}
    rules = linear_rules(f"{theirs}.out_proj", f"{ours}.o_proj", "D", "(N H)", bias=True)
    for name, out in heads.items():
        rules += linear_rules(f"{theirs}.{name}", f"{ours}.{name}", out, "D", bias=True)
    return rules


def _ffn_rules(theirs: str, ours: str, config: StackConfig) -> list[Rule]:
    def mlp(theirs: str, ours: str) -> list[Rule]:
        return [
            *linear_rules(f"{theirs}.layer_1", f"{ours}.up_proj", "F", "D", bias=True),
            *linear_rules(f"{theirs}.layer_2", f"{ours}.down_proj", "D", "F", bias=True),
        ]

    if config.experts is None:
        return mlp(theirs, ours)
    each = f"{theirs}.experts.{{E}}"
    return [
        *linear_rules(f"{theirs}.router", f"{ours}.router", "E", "D", bias=True),
        Rule(f"{each}.layer_1.weight : F D", f"{ours}.up_proj.kernel : E D F"),
        Rule(f"{each}.layer_1.bias : F", f"{ours}.up_proj.bias : E F"),
        Rule(f"{each}.layer_2.weight : D F", f"{ours}.down_proj.kernel : E F D"),
        Rule(f"{each}.layer_2.bias : D", f"{ours}.down_proj.bias : E D"),
        *mlp(f"{theirs}.overflow_expert", f"{ours}.overflow"),
    ]


def layer_sizes(config: StackConfig) -> dict[str, int]:
    """Returns the axis sizes of `layer_rules`."""
    return {
        "D": config.embed_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "F": config.mlp_dim,
        "E": 0 if config.experts is None else config.experts.num_experts,
    }


def reference_arguments(fields: Json) -> Json:
    """Returns the reference's constructor arguments: `ffn_config` as an object, no cache."""
    from jaxllm.interop.reference.components.feed_forward import FFNConfig

    arguments = {**without_type(fields), "use_kv_cache": False}
    if arguments.get("ffn_config") is not None:
        arguments["ffn_config"] = FFNConfig(**arguments["ffn_config"])
    return arguments


def from_the_start(model: Any, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the reference's arguments, after clearing a cache left by another sequence."""
    model.reset_cache()
    return in_order(model, given)
