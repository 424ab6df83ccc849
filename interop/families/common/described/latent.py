"""Latent attention in a config file: its sizes, its RoPE and the factor of its scores; its rules.

The names are those of DeepSeek-V2 and V3 in transformers.
"""

import math
import re
from collections.abc import Collection

from jaxllm.config import DecoderConfig, LatentConfig
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.rope import PARAMETERS, SCALING, read_rope, write_rope
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.rules.rule import Rule

from .part import Part
from .sizes import sizes

MSCALE = "mscale_all_dim"
USUAL_EPS = 1e-6  # of the norms of latents, which no file gives
USUAL_DIMS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
PREDICTING = re.compile(r"(?:^|\.)(layers\.\d+\.)eh_proj\.weight$")


def latent_sizes(max_len: int) -> Part:
    """All sizes of a decoder with latent attention; `head_dim` in the file follows from them."""
    plain = sizes(max_len)

    def read(fields: Fields) -> Json:
        found = plain.read(fields)
        fields.require("num_key_value_heads", None, found["num_heads"])
        latent = fields.build(
            LatentConfig,
            kv_rank=fields.take("kv_lora_rank", int, 512),
            query_rank=fields.take_nullable("q_lora_rank", int, 1536),
            rope_dim=fields.take("qk_rope_head_dim", int, USUAL_DIMS["qk_rope_head_dim"]),
            value_dim=fields.take("v_head_dim", int, 128),
            norm_eps=USUAL_EPS,
        )
        heads = {"num_kv_heads": found["num_heads"], "head_dim": read_width(fields)}
        return {**found, **heads, "attention.latent": latent}

    def write(config: DecoderConfig, base: Json) -> Json:
        latent = config.attention.latent
        assert latent is not None, "refused otherwise"
        derived = {"head_dim": latent.rope_dim, "qk_head_dim": config.head_dim}
        written = plain.write(config, base) | derived
        return {
            **{name: x for name, x in written.items() if name not in derived or name in base},
            "kv_lora_rank": latent.kv_rank,
            "q_lora_rank": latent.query_rank,
            "qk_rope_head_dim": latent.rope_dim,
            "qk_nope_head_dim": config.head_dim - latent.rope_dim,
            "v_head_dim": latent.value_dim,
        }

    def unsupported(config: DecoderConfig) -> dict[str, bool]:
        latent = config.attention.latent
        if latent is None:
            return {"attention.latent=None": True}
        return {f"attention.latent.norm_eps={latent.norm_eps}": latent.norm_eps != USUAL_EPS}

    return Part(read, write, ("attention.latent",), unsupported)


def read_width(fields: Fields) -> int:
    """Returns the width of a head's queries and keys: of what is rotated, and of what is not."""
    return sum(fields.take(name, int, usual) for name, usual in USUAL_DIMS.items())


def latent_rope(*, is_interleaved: bool | None = None) -> Part:
    """RoPE of latent attention, and the factor of scores that goes with its scaling.

    Args:
        is_interleaved: whether adjacent elements form pairs; None: the file says it.
    """

    def read(fields: Fields) -> Json:
        pairs = is_interleaved
        if pairs is None:
            pairs = fields.take("rope_interleave", bool, True)
        config = {**read_rope(fields), "rope.layout": "interleaved" if pairs else "half"}
        given = fields.data.get(SCALING) or fields.data.get(PARAMETERS) or {}
        mscale, scaling = given.get(MSCALE) or 0, config.get("rope.scaling")
        if scaling is not None and mscale:
            config["attention.scale"] = score_scale(read_width(fields), scaling.factor, mscale)
        return config

    def write(config: DecoderConfig, base: Json) -> Json:
        written = write_rope(config)
        if config.attention.scale is not None:
            written[SCALING] = {**written[SCALING], MSCALE: find_mscale(config)}
        if is_interleaved is None:
            written["rope_interleave"] = config.rope.layout == "interleaved"
        return written

    def unsupported(config: DecoderConfig) -> dict[str, bool]:
        scale, pairs = config.attention.scale, config.rope.layout == "interleaved"
        return {
            f"attention.scale={scale}": scale is not None and find_mscale(config) is None,
            f"rope.layout={config.rope.layout!r}": is_interleaved not in (None, pairs),
        }

    ours = ("rope.theta", "rope.scaling", "rope.layout", "attention.scale")
    return Part(read, write, ours, unsupported)


def score_scale(head_dim: int, factor: float, mscale: float) -> float:
    """Returns the factor of scores: `m^2 / sqrt(head_dim)` with `m = 0.1 mscale ln(factor) + 1`."""
    growth = 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
    return head_dim**-0.5 * growth * growth


def find_mscale(config: DecoderConfig) -> float | None:
    """Returns the field that gives a config's factor of scores; None if none does exactly."""
    scale, scaling = config.attention.scale, config.rope.scaling
    if scale is None or scaling is None or scaling.factor <= 1:
        return None
    growth = math.sqrt(scale * math.sqrt(config.head_dim))
    mscale = (growth - 1) / (0.1 * math.log(scaling.factor))
    for digits in range(1, 18):
        given = round(mscale, digits)
        if given and score_scale(config.head_dim, scaling.factor, given) == scale:
            return given
    return None


def latent_rules(config: DecoderConfig) -> list[Rule]:
    """Rules of latent attention. P is the latent of keys and values, p with the rotated key.

    A head of `kv_up` is its keys, without what is rotated, and its values: U; W is the latter.
    """
    latent = _latent_of(config)
    theirs, ours = "model.layers.{L}.self_attn.", "layers.{L}.attn."
    down, out = config.attention.qkv_bias, config.attention.out_bias
    queries = linear_rules(f"{theirs}q_proj", f"{ours}q_proj", "(N H)", "D")
    if latent.query_rank is not None:
        queries = [
            *linear_rules(f"{theirs}q_a_proj", f"{ours}q_down", "Q", "D", bias=down),
            Rule(f"{theirs}q_a_layernorm.weight : Q", f"{ours}q_norm.scale : Q"),
            *linear_rules(f"{theirs}q_b_proj", f"{ours}q_proj", "(N H)", "Q"),
        ]
    return [
        *queries,
        *linear_rules(f"{theirs}kv_a_proj_with_mqa", f"{ours}kv_down", "p", "D", bias=down),
        Rule(f"{theirs}kv_a_layernorm.weight : P", f"{ours}kv_norm.scale : P"),
        *linear_rules(f"{theirs}kv_b_proj", f"{ours}kv_up", "(N U)", "P"),
        *linear_rules(f"{theirs}o_proj", f"{ours}o_proj", "D", "(N W)", bias=out),
    ]


def latent_axes(config: DecoderConfig) -> dict[str, int]:
    """Returns the sizes of the axes of `latent_rules`."""
    latent = _latent_of(config)
    return {
        "Q": latent.query_rank or 0,
        "P": latent.kv_rank,
        "p": latent.kv_rank + latent.rope_dim,
        "U": config.head_dim - latent.rope_dim + latent.value_dim,
        "W": latent.value_dim,
    }


def _latent_of(config: DecoderConfig) -> LatentConfig:
    if config.attention.latent is None:
        raise ValueError("attention.latent=None has no place there")
    return config.attention.latent


def predicting_layers(stored: Collection[str]) -> dict[str, str]:
    """Returns patterns of stored layers that predict further tokens: such a layer has `eh_proj`.

    Generation of one token after the other does not need them (DeepSeek-V3, section 2.2).
    """
    found = sorted({match[1] for name in stored if (match := PREDICTING.search(name))})
    return {f"*{layer}*": "a layer that predicts further tokens" for layer in found}
