"""Rules for the sharded tensors of Meta's Llama 2, 3 and 4 and of `LLM`, under all their names.

Rotated pairs are adjacent. fairscale splits the rows of column-parallel projections and the columns
of row-parallel ones over T shards, each part of a fused projection separately, and copies norms and
routers to every shard. With more shards than key/value heads, R shards hold the same head.
"""

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.decoder_axes import decoder_sizes, head_pairs
from jaxllm.interop.families.common.fairscale import SHARD, split_sizes
from jaxllm.interop.families.common.llama_like import layers_with_mlp
from jaxllm.interop.families.huggingface.multimodal.llama4_vision import (
    META_NAMES,
    VISION_SPLIT,
    vision_rules,
    vision_sizes,
)
from jaxllm.interop.rules.rule import Rule
from jaxllm.layers.attention.rope import rope_frequencies

# Alternative names that the originals' load hooks accept; Meta's own name comes first.
HEAD = ("output.weight", "lm_head.weight")
ATTN_NORM = ("attention_norm.weight", "attention.wqkv.layer_norm_weight", "attention.norm.weight")
MLP_NORM = ("ffn_norm.weight", "feed_forward.mlp.layer_norm_weight", "feed_forward.norm.weight")
QUERIES = ("attention.wq.weight", "attention.wqkv.weight")
DOWN = ("feed_forward.w2.weight", "feed_forward.w_out.weight", "feed_forward.mlp.fc2_weight")
# The same, with all tensors that are renamed together: gates, values and, for experts, outputs.
GATE = {
    "feed_forward.w1.weight": ("w1.weight : f D", "w3.weight : f D"),
    "feed_forward.w_gate.weight": ("w_gate.weight : f D", "w_value.weight : f D"),
    "feed_forward.mlp.fc1_weight": ("mlp.fc1_weight#gate : f D", "mlp.fc1_weight#value : f D"),
}
EXPERTS = {
    "feed_forward.experts.w1": (
        *("experts.w1 : E D x", "experts.w3 : E D x", "experts.w2 : E x D"),
    ),
    "feed_forward.experts.moe_w_in_eD_F": (
        *("experts.moe_w_in_eD_F : (E D) x", "experts.moe_w_swiglu_eD_F : (E D) x"),
        "experts.moe_w_out_eF_D : (E x) D",
    ),
}
SHARED = {
    "feed_forward.shared_expert.w1.weight": (
        *("shared_expert.w1.weight : s D", "shared_expert.w3.weight : s D"),
        "shared_expert.w2.weight : D s",
    ),
    "feed_forward.w_in_shared_FD.weight": (
        *("w_in_shared_FD.weight : s D", "w_swiglu_FD.weight : s D"),
        "w_out_shared_DF.weight : D s",
    ),
}
FREQUENCIES = "rope.freqs"
OUTER = "outer"  # not in a layer
LAYER = SHARD + "layers.{L}."
ALTERNATIVES = frozenset(
    {*HEAD, *ATTN_NORM, *MLP_NORM, *QUERIES, *GATE, *DOWN, *EXPERTS, *SHARED, FREQUENCIES}
)
IGNORED = {
    "*rope.freqs": "derived from the config",
    "*freq_cis": "derived from the config",
    "*_extra_state": "bookkeeping of a training library",
    "*.running_gate_stats_3E": "statistics of training",
    "*.global_gate_stats_3E": "statistics of training",
    "*.expert_activation_DE": "statistics of training",
}


def names_in(stored: Iterable[str], pattern: Sequence[LayerKind]) -> tuple[str, ...]:
    """Lists the alternative names in a checkpoint by layer kind: `dense:ffn_norm.weight`.

    Layers of the same kind use the same names, since they are stacked; other kinds may differ.
    """
    found = set()
    for name in stored:
        bare = re.sub(r"^\d+/", "", name)
        layer = re.match(r"layers\.(\d+)\.", bare)
        where = OUTER if layer is None else pattern[int(layer[1]) % len(pattern)].mlp
        if (tensor := bare.removeprefix(layer[0] if layer else "")) in ALTERNATIVES:
            found.add(f"{where}:{tensor}")
    return tuple(sorted(found))


def has_frequencies(names: Collection[str]) -> bool:
    """Whether these names include RoPE's frequencies, a buffer that follows from the config."""
    return f"{OUTER}:{FREQUENCIES}" in names


def sharded_sizes(config: DecoderConfig, shards: int, *, cut_width: bool = False) -> dict[str, int]:
    """Returns the decoder's axis sizes, the number of shards T, and each split axis per shard.

    Key/value heads are in U distinct parts, each held by R shards. Raises ValueError if the shards
    do not divide a split axis.
    """
    sizes, T, K = decoder_sizes(config), shards, config.num_kv_heads
    split = {"num_heads": "N", "mlp_dim": "F", "vocab_size": "V"}
    if cut_width:
        split["embed_dim"] = "D"
    if config.experts is not None:
        split |= {"experts.mlp_dim": "X", "experts.shared_mlp_dim": "S"}
    if config.vision is not None:
        split, sizes = split | VISION_SPLIT, sizes | vision_sizes(config.vision)
    uneven = K % T and T % K
    cut = split_sizes(sizes, T, split, wrong=[f"num_kv_heads={K}"] if uneven else [])
    U = min(T, K)
    return {**cut, "U": U, "R": T // U, "k": K // U}


def llama_rules(
    config: DecoderConfig, names: Collection[str], *, cut_width: bool = False
) -> list[Rule]:
    """Rules for every tensor, by shard (`00/norm.weight`), with the names that `names_in` found.

    These formats have no tied head: see `copied_heads`.
    """
    embedding, table = ("V d", "V (T d)") if cut_width else ("v D", "(T v) D")
    head = Rule(f"{SHARD}{_chosen(HEAD, names, OUTER)} : v D", "lm_head.kernel : D (T v)")
    return [
        Rule(f"{SHARD}tok_embeddings.weight : {embedding}", "embed.embedding : " + table),
        *_layer_rules(config, names, "dense"),
        *_layer_rules(config, names, "experts"),
        Rule(SHARD + "norm.weight : D", "final_norm.scale : D", "T"),
        *([] if config.head.tied else [head]),
        *(vision_rules(META_NAMES) if config.vision is not None else ()),
    ]


def copied_heads(
    config: DecoderConfig, names: Collection[str], shards: Iterable[str]
) -> dict[str, str]:
    """Maps a tied head in each shard (prefix `00/`) to the embedding that it is a copy of."""
    if not config.head.tied:
        return {}
    head = _chosen(HEAD, names, OUTER)
    return {shard + head: shard + "tok_embeddings.weight" for shard in shards}


def _chosen(group: Iterable[str], names: Collection[str], where: str) -> str:
    """Returns the name of the group that the checkpoint uses there, or the first."""
    group = tuple(group)
    return next((name for name in group if f"{where}:{name}" in names), group[0])


def _layer_rules(config: DecoderConfig, names: Collection[str], mlp: str) -> list[Rule]:
    """Rules for the layers whose MLP is of this kind: "dense" or "experts"."""
    layers = layers_with_mlp(config, mlp)
    if not layers:
        return []

    def chosen(group: Iterable[str]) -> str:
        return _chosen(group, names, mlp)

    if mlp == "dense":
        rules = _mlp_rules(GATE[chosen(GATE)], chosen(DOWN))
    else:
        rules = _expert_rules(EXPERTS[chosen(EXPERTS)], SHARED[chosen(SHARED)])
    rules += [
        *_attention_rules(head_pairs(config), is_fused=chosen(QUERIES) != QUERIES[0]),
        Rule(f"{LAYER}{chosen(ATTN_NORM)} : D", "layers.{L}.attn_norm.scale : D", "T"),
        Rule(f"{LAYER}{chosen(MLP_NORM)} : D", "layers.{L}.mlp_norm.scale : D", "T"),
    ]
    return [Rule(rule.stored, rule.model, " ".join(rule.replicated), layers) for rule in rules]


def _attention_rules(pairs: str, *, is_fused: bool) -> list[Rule]:
    q, k, v = (f"wqkv.weight#{x}" if is_fused else f"w{x}.weight" for x in "qkv")
    theirs, ours = LAYER + "attention.", "layers.{L}.attn."
    copies = theirs.replace(SHARD, "{U R:02}/")
    return [
        Rule(f"{theirs}{q} : (n h r) D", f"{ours}q_proj.kernel : D (T n) {pairs}"),
        Rule(f"{copies}{k} : (k h r) D", f"{ours}k_proj.kernel : D (U k) {pairs}", "R"),
        Rule(f"{copies}{v} : (k H) D", f"{ours}v_proj.kernel : D (U k) H", "R"),
        Rule(f"{theirs}wo.weight : D (n H)", f"{ours}o_proj.kernel : (T n) H D"),
    ]


def _mlp_rules(gate_and_value: Sequence[str], down: str) -> list[Rule]:
    ours = "layers.{L}.mlp."
    gate, value = (f"{LAYER}feed_forward.{stored}" for stored in gate_and_value)
    return [
        Rule(gate, ours + "gate_proj.kernel : D (T f)"),
        Rule(value, ours + "up_proj.kernel : D (T f)"),
        Rule(f"{LAYER}{down} : D f", ours + "down_proj.kernel : (T f) D"),
    ]


def _expert_rules(experts: Sequence[str], shared: Sequence[str]) -> list[Rule]:
    theirs, ours = LAYER + "feed_forward.", "layers.{L}.mlp."
    model = (
        *("gate_proj.kernel : E D (T x)", "up_proj.kernel : E D (T x)"),
        "down_proj.kernel : E (T x) D",
        *("shared.gate_proj.kernel : D (T s)", "shared.up_proj.kernel : D (T s)"),
        "shared.down_proj.kernel : (T s) D",
    )
    sides = zip((*experts, *shared), model, strict=True)
    router = Rule(theirs + "router_DE : D E", ours + "router.kernel : D E", "T")
    return [router, *(Rule(theirs + stored, ours + array) for stored, array in sides)]


def frequencies(config: DecoderConfig) -> np.ndarray:
    """Returns the buffer `rope.freqs` of early checkpoints: H/2 frequencies."""
    return rope_frequencies(config.head_dim, config.rope.theta, None).astype(
        config.numerics.param_dtype
    )
