"""Rules of decoders that are not named like Llama: norms of any kind, MLPs and attention."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.rules.rule import Rule

# Our names of the projections of attention, by the stored ones.
LLAMA = MappingProxyType({name: name for name in ("q_proj", "k_proj", "v_proj", "o_proj")})
OUTPUT = MappingProxyType({**LLAMA, "o_proj": "out_proj"})


def embedding_rule(theirs: str, ours: str = "embed") -> Rule:
    """The rule of an embedding of tokens."""
    return Rule(f"{theirs}.weight : V D", f"{ours}.embedding : V D")


def position_rule(theirs: str) -> Rule:
    """The rule of a table of learned positions, with axis M."""
    return Rule(f"{theirs}.weight : M D", "embed_position.embedding : M D")


def norm_rules(config: DecoderConfig, norms: Mapping[str, str]) -> list[Rule]:
    """Rules of norms with the parameters of the config's kind, by their names in the model."""
    parameters = {"layer": ("weight", "bias"), "layer_bare": ()}
    return [
        Rule(f"{theirs}.{name} : D", f"{ours}.{'scale' if name == 'weight' else name} : D")
        for ours, theirs in norms.items()
        for name in parameters.get(config.norms.kind, ("weight",))
    ]


def attention_rules(
    config: DecoderConfig,
    theirs: str,
    ours: str = "layers.{L}.attn",
    names: Mapping[str, str] = LLAMA,
) -> list[Rule]:
    """Rules of separate projections, whose heads are stored as the model has them.

    `names` are the stored names of the projections, by ours.
    """
    qkv, out = config.attention.qkv_bias, config.attention.out_bias
    rules = []
    for name, heads in (("q_proj", "(N H)"), ("k_proj", "(K H)"), ("v_proj", "(K H)")):
        rules += linear_rules(f"{theirs}.{names[name]}", f"{ours}.{name}", heads, "D", bias=qkv)
    last = f"{theirs}.{names['o_proj']}", f"{ours}.o_proj"
    return [*rules, *linear_rules(*last, "D", "(N H)", bias=out)]


def mlp_rules(
    config: DecoderConfig, theirs: str, up: str, down: str, ours: str = "layers.{L}.mlp"
) -> list[Rule]:
    """Rules of an MLP without a gate: its projections, by their stored names."""
    bias = config.mlp.bias
    return [
        *linear_rules(f"{theirs}{up}", f"{ours}.up_proj", "F", "D", bias=bias),
        *linear_rules(f"{theirs}{down}", f"{ours}.down_proj", "D", "F", bias=bias),
    ]


def fused_qkv_rules(
    config: DecoderConfig, theirs: str, ours: str = "layers.{L}.attn", heads: str = "(N P H)"
) -> list[Rule]:
    """Rules of a projection to queries, keys and values, P, with as many of each.

    `heads` orders its rows: each head's query, key and value by default.
    """
    part = ours + ".{P=q|k|v}_proj."
    rules = [Rule(f"{theirs}.weight : {heads} D", f"{part}kernel : D N H")]
    if config.attention.qkv_bias:
        rules.append(Rule(f"{theirs}.bias : {heads}", f"{part}bias : N H"))
    return rules


def fused_gated_mlp_rules(theirs: str, ours: str = "layers.{L}.mlp") -> list[Rule]:
    """Rules of a gated MLP without biases, whose gate and input projection are one tensor."""
    return [
        Rule(f"{theirs}.gate_up_proj.weight : (G F) D", ours + ".{G=gate|up}_proj.kernel : D F"),
        Rule(f"{theirs}.down_proj.weight : D F", f"{ours}.down_proj.kernel : F D"),
    ]


def grouped_qkv_rules(
    config: DecoderConfig, theirs: str, ours: str = "layers.{L}.attn"
) -> list[Rule]:
    """Rules of a projection to groups of rows: for each key its g queries, the key and the value.

    With one key for all, those are all queries, then the key, then the value.
    """
    rules = []
    for name, rows, heads in (("q", "(g H)", "(K g)"), ("k", "H", "K"), ("v", "H", "K")):
        part, projection = f"{{K}}{name}", f"{ours}.{name}_proj"
        rules.append(
            Rule(f"{theirs}.weight#{part} : {rows} D", f"{projection}.kernel : D {heads} H")
        )
        if config.attention.qkv_bias:
            rules.append(Rule(f"{theirs}.bias#{part} : {rows}", f"{projection}.bias : {heads} H"))
    return rules
