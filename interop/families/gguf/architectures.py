"""The architectures of GGUF files that can be read, by the name in the file."""

import dataclasses
from collections.abc import Callable, Collection

from jaxllm.interop.families.common.fields import Json

from .architecture import Architecture

_LAYER = "model.layers.#"
_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_WINDOWED = {**_FIELDS, "attention.sliding_window": "sliding_window"}
_EXPERTS = {"expert_used_count": "num_experts_per_tok"}
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "blk.#.attn_q": f"{_LAYER}.self_attn.q_proj",
    "blk.#.attn_k": f"{_LAYER}.self_attn.k_proj",
    "blk.#.attn_v": f"{_LAYER}.self_attn.v_proj",
    "blk.#.attn_output": f"{_LAYER}.self_attn.o_proj",
}
_NORMS = {
    "blk.#.attn_norm": f"{_LAYER}.input_layernorm",
    "blk.#.ffn_norm": f"{_LAYER}.post_attention_layernorm",
}
_QK_NORMS = {
    "blk.#.attn_q_norm": f"{_LAYER}.self_attn.q_norm",
    "blk.#.attn_k_norm": f"{_LAYER}.self_attn.k_norm",
}
_MLP = {
    "blk.#.ffn_gate": f"{_LAYER}.mlp.gate_proj",
    "blk.#.ffn_up": f"{_LAYER}.mlp.up_proj",
    "blk.#.ffn_down": f"{_LAYER}.mlp.down_proj",
}
_LLAMA: dict[str, str] = {**_ENDS, **_ATTENTION, **_NORMS, **_MLP}
_INTERLEAVED = {
    "blk.#.attn_q": "num_attention_heads",
    "blk.#.attn_k": "num_key_value_heads",
}
_MIXTRAL_EXPERTS = {"gate": "w1", "down": "w2", "up": "w3"}
_GEMMA_NORMS = {
    **_NORMS,
    "blk.#.post_attention_norm": f"{_LAYER}.post_attention_layernorm",
    "blk.#.ffn_norm": f"{_LAYER}.pre_feedforward_layernorm",
    "blk.#.post_ffw_norm": f"{_LAYER}.post_feedforward_layernorm",
}


def _query_scale(layers_of_largest: int) -> Callable[[Json], Json]:
    """Returns a function that adds the scale of queries, which files of Gemma do not hold.

    Args:
        layers_of_largest: the number of layers of the largest model, which scales queries by the
            width of the model divided by its heads; others by the width of a head.
    """

    def complete(config: Json) -> Json:
        head_dim = config.get("head_dim", 256)
        if config.get("num_hidden_layers") == layers_of_largest:
            head_dim = config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)
        return {"query_pre_attn_scalar": head_dim}

    return complete


def _t5_stack(stack: str, file: str, feed_forward: int) -> dict[str, str]:
    """Returns names of a stack of T5; a block has its feed-forward part under this number."""
    block, ours = f"{file}.blk.#", f"{stack}.block.#.layer"
    dense = f"{ours}.{feed_forward}.DenseReluDense"
    return {
        **{f"{block}.attn_{name}": f"{ours}.0.SelfAttention.{name}" for name in "qkvo"},
        f"{block}.attn_norm": f"{ours}.0.layer_norm",
        f"{block}.attn_rel_b": f"{ours}.0.SelfAttention.relative_attention_bias",
        f"{block}.ffn_norm": f"{ours}.{feed_forward}.layer_norm",
        f"{block}.ffn_gate": f"{dense}.wi_0",
        f"{block}.ffn_up": f"{dense}.wi",
        f"{block}.ffn_down": f"{dense}.wo",
        f"{file}.output_norm": f"{stack}.final_layer_norm",
    }


_T5_ENCODER = {"token_embd": "shared", **_t5_stack("encoder", "enc", 1)}
_T5_DECODER = {
    **_t5_stack("decoder", "dec", 2),
    **{
        f"dec.blk.#.cross_attn_{name}": f"decoder.block.#.layer.1.EncDecAttention.{name}"
        for name in "qkvo"
    },
    "dec.blk.#.cross_attn_norm": "decoder.block.#.layer.1.layer_norm",
    "output": "lm_head",
}
T5 = Architecture(  # the original, whose feed-forward layers have no gate
    model_type="t5",
    fields={
        "block_count": "num_layers",
        "decoder_block_count": "num_decoder_layers",
        "context_length": "n_positions",
        "embedding_length": "d_model",
        "feed_forward_length": "d_ff",
        "attention.head_count": "num_heads",
        "attention.key_length": "d_kv",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        "attention.relative_buckets_count": "relative_attention_num_buckets",
        "decoder_start_token_id": "decoder_start_token_id",
    },
    names={**_T5_ENCODER, **_T5_DECODER},
    constants={"feed_forward_proj": "relu"},
)
T5_ENCODER = dataclasses.replace(T5, names=_T5_ENCODER)


def _gated(t5: Architecture) -> Architecture:
    """Returns T5 v1.1, with a gate in the feed-forward layers."""
    first = t5.names.items()
    return dataclasses.replace(
        t5,
        names={name: f"{ours}_1" if name.endswith("ffn_up") else ours for name, ours in first},
        constants={"feed_forward_proj": "gated-gelu"},
        marker="enc.blk.0.ffn_gate.weight",
    )


MIXTRAL = Architecture(
    model_type="mixtral",
    fields={**_FIELDS, **_EXPERTS, "expert_count": "num_local_experts"},
    names={
        **_ENDS,
        **_ATTENTION,
        **_NORMS,
        "blk.#.ffn_gate_inp": f"{_LAYER}.block_sparse_moe.gate",
        **{
            f"blk.#.ffn_{ours}{end}": f"{_LAYER}.block_sparse_moe.experts.@.{theirs}"
            for ours, theirs in _MIXTRAL_EXPERTS.items()
            for end in ("_exps", ".@")  # old files have a tensor for each expert
        },
    },
    interleaved=_INTERLEAVED,
    marker="blk.0.ffn_gate_inp.weight",
)

ARCHITECTURES = {
    "llama": Architecture(
        model_type="llama", fields=_FIELDS, names=_LLAMA, interleaved=_INTERLEAVED
    ),
    "qwen2": Architecture(model_type="qwen2", fields=_FIELDS, names=_LLAMA),
    "qwen3": Architecture(model_type="qwen3", fields=_FIELDS, names=_LLAMA | _QK_NORMS),
    "qwen3moe": Architecture(
        model_type="qwen3_moe",
        fields={
            **_FIELDS,
            **_EXPERTS,
            "expert_count": "num_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        names={
            **_ENDS,
            **_ATTENTION,
            **_NORMS,
            **_QK_NORMS,
            "blk.#.ffn_gate_inp": f"{_LAYER}.mlp.gate",
            **{
                f"blk.#.ffn_{name}_exps": f"{_LAYER}.mlp.experts.@.{name}_proj"
                for name in ("gate", "up", "down")
            },
        },
        constants={"norm_topk_prob": True},
    ),
    "smollm3": Architecture(
        model_type="smollm3", fields=_FIELDS, names=_LLAMA, interleaved=_INTERLEAVED
    ),
    "olmo2": Architecture(
        model_type="olmo2",
        fields=_FIELDS,
        names={
            **_ENDS,
            **_ATTENTION,
            **_QK_NORMS,
            **_MLP,
            "blk.#.post_attention_norm": f"{_LAYER}.post_attention_layernorm",
            "blk.#.post_ffw_norm": f"{_LAYER}.post_feedforward_layernorm",
        },
    ),
    "phi3": Architecture(
        model_type="phi3",
        fields=_WINDOWED,
        names={
            **_ENDS,
            **_NORMS,
            "blk.#.attn_qkv": f"{_LAYER}.self_attn.qkv_proj",
            "blk.#.attn_output": f"{_LAYER}.self_attn.o_proj",
            "blk.#.ffn_up": f"{_LAYER}.mlp.gate_up_proj",
            "blk.#.ffn_down": f"{_LAYER}.mlp.down_proj",
        },
    ),
    "gemma2": Architecture(
        model_type="gemma2",
        fields={
            **_WINDOWED,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        names={**_ENDS, **_ATTENTION, **_GEMMA_NORMS, **_MLP},
        shifted=("norm",),
        complete=_query_scale(46),
    ),
    "gemma3": Architecture(
        model_type="gemma3_text",
        fields=_WINDOWED,
        names={**_ENDS, **_ATTENTION, **_GEMMA_NORMS, **_QK_NORMS, **_MLP},
        shifted=("norm",),
        complete=_query_scale(62),
    ),
    "gpt2": Architecture(
        model_type="gpt2",
        fields={
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        names={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "blk.#.attn_norm": "transformer.h.#.ln_1",
            "blk.#.attn_qkv": "transformer.h.#.attn.c_attn",
            "blk.#.attn_output": "transformer.h.#.attn.c_proj",
            "blk.#.ffn_norm": "transformer.h.#.ln_2",
            "blk.#.ffn_up": "transformer.h.#.mlp.c_fc",
            "blk.#.ffn_down": "transformer.h.#.mlp.c_proj",
        },
        transposed=("blk.#.attn_qkv", "blk.#.attn_output", "blk.#.ffn_up", "blk.#.ffn_down"),
    ),
    "t5": T5,
    "t5encoder": T5_ENCODER,
}
VARIANTS = {"llama": MIXTRAL, "t5": _gated(T5), "t5encoder": _gated(T5_ENCODER)}


def find_architecture(name: object, tensors: Collection[str]) -> Architecture | None:
    """Returns the architecture of a file by its name and the names of its tensors, or None."""
    if not isinstance(name, str):
        return None
    variant = VARIANTS.get(name)
    if variant is not None and variant.marker in tensors:
        return variant
    return ARCHITECTURES.get(name)
