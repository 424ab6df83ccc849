"""Layer arguments and tensor rules shared by nima's two models."""

from jaxllm.config import StackConfig, flatten
from jaxllm.interop.families.common.family import Derived
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import layer_norm_rules
from jaxllm.interop.families.common.torch_modules import attention_rules, linear_rules, sinusoids
from jaxllm.interop.families.common.unsupported import (
    unsupported_by_equal_heads,
    unsupported_values,
)
from jaxllm.interop.rules.rule import Rule

NAMES = ("w_q", "w_k", "w_v", "w_o")
# Settings of every layer, whatever the arguments. Rotated pairs are adjacent.
FIXED: Json = {
    "norms.kind": "layer",
    "norms.eps": 1e-6,
    "norms.final_eps": 1e-5,
    "rope.layout": "interleaved",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
}
FEED_FORWARDS: dict[str, Json] = {
    "ffn": {"mlp.gated": False, "mlp.activation": "relu"},
    "glu": {"mlp.gated": True, "mlp.activation": "sigmoid"},
    "swiglu": {"mlp.gated": True, "mlp.activation": "silu"},
}
NORMS = ("post", "pre")
INITS = ("xavier", "normal")
# Kinds of positions whose name in our configs differs.
OUR_POSITIONS = {"relative": "distance"}
WAVES = "exp"  # how sinusoid frequencies are computed
SUPPORTED = (
    *(*FIXED, "norms.placement", "norms.final", "mlp.gated", "mlp.activation"),
    *("positions.kind", "positions.waves"),
)


def read_layers(fields: Fields, positions: tuple[str, ...]) -> Json:
    """Reads the layers' arguments; `positions` lists the kinds that the model has, default first.

    The original lacks the switches `norm`, `feed_forward`, `position` and `init`; their defaults
    are what it does.
    """
    fields.ignore("model_type")
    width, heads = fields.take("d_model", int), fields.take("n_heads", int)
    position = _choose(fields, "position", positions)
    return {
        **FIXED,
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "mlp_dim": fields.take("d_ff", int),
        "max_len": fields.take("max_seq_len", int, 512),
        "norms.placement": _choose(fields, "norm", NORMS),
        "positions.kind": OUR_POSITIONS.get(position, position),
        "positions.waves": WAVES if position == "sinusoidal" else "power",
        "dropout": fields.take("dropout", float, 0.1),
        "init.kind": _choose(fields, "init", INITS),
        **FEED_FORWARDS[_choose(fields, "feed_forward", tuple(FEED_FORWARDS))],
    }


def _choose(fields: Fields, name: str, known: tuple[str, ...]) -> str:
    """Returns the field's value; by default, or if it is not known, the first known value."""
    fields.require(name, *known)
    given = fields.take(name, str, known[0])
    return given if given in known else known[0]


def write_layers(config: StackConfig, base: Json, positions: tuple[str, ...]) -> Json:
    """Writes the arguments of `read_layers`; switches only if given in `base` or not default."""
    switches = {
        "norm": (config.norms.placement, NORMS[0]),
        "feed_forward": (_feed_forward(config), next(iter(FEED_FORWARDS))),
        "position": (_position(config), positions[0]),
        "dropout": (config.dropout, 0.1),
        "init": (config.init.kind, INITS[0]),
    }
    return {
        "d_model": config.embed_dim,
        "n_heads": config.num_heads,
        "d_ff": config.mlp_dim,
        "max_seq_len": config.max_len,
        **{
            name: given
            for name, (given, default) in switches.items()
            if name in base or given != default
        },
    }


def _position(config: StackConfig) -> str:
    """Returns nima's name for the kind of positions."""
    theirs = {ours: theirs for theirs, ours in OUR_POSITIONS.items()}
    return theirs.get(config.positions.kind, config.positions.kind)


def _feed_forward(config: StackConfig) -> str | None:
    """Returns nima's name for the kind of MLP, or None if nima does not have it."""
    given = flatten(config)
    kinds = (name for name, kind in FEED_FORWARDS.items() if kind.items() <= given.items())
    return next(kinds, None)


def unsupported(config: StackConfig, positions: tuple[str, ...]) -> dict[str, bool]:
    """Flags values that the arguments do not support."""
    kind, waves = config.positions.kind, config.positions.waves
    mlp = f"mlp.activation={config.mlp.activation!r} with mlp.gated={config.mlp.gated}"
    relevant = {
        name: value for name, value in FIXED.items() if name != "rope.layout" or kind == "rope"
    }
    return {
        **unsupported_values(config, relevant),
        f"norms.placement={config.norms.placement!r}": config.norms.placement not in NORMS,
        f"positions.kind={kind!r}": kind == "relative" or _position(config) not in positions,
        f"positions.waves={waves!r}": kind == "sinusoidal" and waves != WAVES,
        mlp: _feed_forward(config) is None,
        **unsupported_by_equal_heads(config),
    }


def layer_rules(theirs: str, ours: str, config: StackConfig) -> list[Rule]:
    """Rules for all layers of a stack, by its stored name and its name in the model."""
    attn, mlp = f"{theirs}.self_attention", f"{ours}.mlp"
    norms = ["attn_norm", *(["cross_norm"] if config.attention.cross else []), "mlp_norm"]
    rules = [
        *attention_rules(attn, f"{ours}.attn", NAMES, bias=True),
        *linear_rules(f"{theirs}.feed_forward.linear1", f"{mlp}.up_proj", "F", "D", bias=True),
        *linear_rules(f"{theirs}.feed_forward.linear2", f"{mlp}.down_proj", "D", "F", bias=True),
    ]
    for i, norm in enumerate(norms):
        rules += layer_norm_rules(f"{theirs}.norm{i + 1}", f"{ours}.{norm}")
    if config.mlp.gated:
        rules += linear_rules(
            f"{theirs}.feed_forward.gate", f"{mlp}.gate_proj", "F", "D", bias=True
        )
    if config.positions.kind == "distance":
        rules.append(
            Rule(f"{attn}.relative_bias.weight : R N", f"{ours}.attn_bias.embedding : R N")
        )
    if config.attention.cross:
        cross = f"{theirs}.cross_attention", f"{ours}.cross_attn"
        rules += attention_rules(*cross, NAMES, bias=True)
    return rules


def layer_sizes(config: StackConfig) -> dict[str, int]:
    """Returns the axis sizes of `layer_rules`; R counts distances, M learned positions."""
    return {
        "D": config.embed_dim,
        "N": config.num_heads,
        "H": config.head_dim,
        "F": config.mlp_dim,
        "M": config.max_len,
        "R": 2 * config.max_len - 1,
    }


def waves(config: StackConfig) -> tuple[Derived, ...]:
    """Returns the sinusoidal buffer, (max_len, 1, D), if the model has one."""
    buffer = Derived("pos_encoding.pe", lambda: sinusoids(config)[:, None])
    return (buffer,) if config.positions.kind == "sinusoidal" else ()
