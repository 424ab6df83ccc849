"""Config files of small models, spelled as released models and tools of all kinds spell theirs.

Aliases, nulls, fields of former versions of transformers, of remote code and of other tools stand
as they are found; only sizes, windows and lengths are small.
"""

from typing import Any

Json = dict[str, Any]

SIZES: Json = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "vocab_size": 96,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "initializer_range": 0.02,
}


def _llama(**fields: Any) -> Json:
    own = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    eps = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "tie_word_embeddings": False}
    return {**own, **SIZES, **eps, **fields}


LLAMAS: dict[str, Json] = {
    "first": _llama(
        architectures=["LLaMAForCausalLM"],
        **{"max_sequence_length": 2048, "pad_token_id": -1, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "grouped queries": _llama(num_key_value_heads=2, pretraining_tp=1, rope_scaling=None),
    "llama3 scaling": _llama(
        num_key_value_heads=2,
        rope_theta=500000.0,
        eos_token_id=[91, 92],
        mlp_bias=False,
        max_position_embeddings=2048,
        rope_scaling={
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
            "rope_type": "llama3",
        },
    ),
    "yarn of its own code": _llama(
        auto_map={"AutoConfig": "configuration_llama.LlamaConfig"},
        rope_scaling={
            "factor": 16.0,
            "original_max_position_embeddings": 64,
            "type": "yarn",
            "finetuned": True,
        },
    ),
    "linear": _llama(rope_theta=100000, rope_scaling={"factor": 4.0, "type": "linear"}),
    "dynamic": _llama(
        max_position_embeddings=128,
        rope_scaling={"factor": 2.0, "original_max_position_embeddings": 64, "type": "dynamic"},
    ),
    "other libraries": _llama(
        rope_interleaved=False,
        is_llama_config=True,
        pad_token_id=2,
        unk_token_id=0,
        quantization_config=None,
        unsloth_version="2025.1",
        _name_or_path="someone/model",
        _attn_implementation="sdpa",
        _model_name_or_path="someone/other",
        **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    ),
    "generation settings": _llama(
        max_length=4096, temperature=0.7, top_p=0.9, do_sample=True, num_beams=2, min_length=3
    ),
    "converted from another type": _llama(
        sliding_window=32768,
        use_sliding_window=False,
        max_window_layers=28,
        layer_types=["full_attention"] * 3,
        partial_rotary_factor=1.0,
        use_mrope=False,
    ),
    "gelu": _llama(hidden_act="gelu", attention_dropout=0.1, head_dim=None),
    "version 5": _llama(
        rope_parameters={"rope_theta": 20000.0, "rope_type": "default"}, dtype="float32"
    ),
}


def _of(model_type: str, **fields: Any) -> Json:
    return {"model_type": model_type, **SIZES, **fields}


WINDOWS: dict[str, Json] = {
    "mistral/window": _of("mistral", num_key_value_heads=2, sliding_window=100),
    "mistral/none": _of("mistral", num_key_value_heads=2, sliding_window=None, head_dim=24),
    "mixtral": _of(
        "mixtral",
        num_key_value_heads=2,
        num_local_experts=5,
        num_experts_per_tok=2,
        output_router_logits=False,
        router_aux_loss_coef=0.02,
        router_jitter_noise=0.1,
        sliding_window=None,
    ),
    "qwen2/window off": _of(
        "qwen2",
        num_key_value_heads=2,
        max_window_layers=1,
        sliding_window=32768,
        use_sliding_window=False,
        use_mrope=False,
        rms_norm_eps=1e-6,
        dual_chunk_attention_config={"chunk_size": 262144},
    ),
    "qwen2/window on": _of(
        "qwen2", max_window_layers=2, sliding_window=100, use_sliding_window=True, head_dim=16
    )
    | {"num_key_value_heads": 4},
    "qwen3": _of(
        "qwen3",
        num_key_value_heads=2,
        head_dim=24,
        attention_bias=False,
        max_window_layers=36,
        sliding_window=None,
        use_sliding_window=False,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attn_factor": 0.9,
        },
    ),
    "qwen3_moe": _of(
        "qwen3_moe",
        num_key_value_heads=2,
        head_dim=24,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=40,
        mlp_only_layers=[],
        decoder_sparse_step=1,
        norm_topk_prob=True,
        max_window_layers=28,
        sliding_window=None,
        use_sliding_window=False,
        shared_expert_intermediate_size=0,
        qkv_bias=False,
        use_qk_norm=True,
    ),
    "smollm3": _of(
        "smollm3",
        num_key_value_heads=2,
        max_window_layers=28,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 0, 1],
        layer_types=["full_attention"] * 3,
        sliding_window=None,
        use_sliding_window=False,
        pretraining_tp=2,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "olmo2": _of("olmo2", attention_bias=False, rope_scaling=None, pad_token_id=3, fsdp_wrap="x"),
}
_FACTORS = {
    "long_factor": [1.0 + i for i in range(8)],
    "short_factor": [1.0 + i / 9 for i in range(8)],
}
PHIS: dict[str, Json] = {
    "phi3": _of(
        "phi3",
        auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
        attention_bias=True,
        embd_pdrop=0.1,
        resid_pdrop=0.1,
        original_max_position_embeddings=4096,
        rope_scaling=None,
        sliding_window=100,
        pad_token_id=3,
    ),
    "phi3/longrope": _of(
        "phi3",
        max_position_embeddings=2048,
        original_max_position_embeddings=128,
        rope_scaling={**_FACTORS, "type": "longrope"},
        sliding_window=2048,
        pad_token_id=3,
    ),
    "phi3/partial": _of(
        "phi3",
        num_key_value_heads=2,
        partial_rotary_factor=0.75,
        full_attn_mod=1,
        interpolate_factor=1,
        lm_head_bias=False,
        mlp_bias=False,
        max_position_embeddings=2048,
        original_max_position_embeddings=128,
        rope_scaling={name: numbers[:6] for name, numbers in _FACTORS.items()}
        | {"type": "longrope"},
        pad_token_id=3,
        tie_word_embeddings=True,
    ),
}
_GEMMA = {"num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 24, "pad_token_id": 0}
GEMMAS: dict[str, Json] = {
    "gemma2": _of(
        "gemma2",
        **_GEMMA,
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        cache_implementation="hybrid",
        sliding_window=100,
        sliding_window_size=100,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "gemma3_text": _of(
        "gemma3_text",
        **_GEMMA,
        num_hidden_layers=7,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        mm_tokens_per_image=256,
        boi_token_index=90,
        rope_local_base_freq=10000,
        rope_theta=1000000,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        sliding_window=100,
        sliding_window_pattern=6,
    ),
    "gemma3_text/version 5": _of(
        "gemma3_text",
        **_GEMMA,
        _sliding_window_pattern=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        sliding_window=100,
        use_bidirectional_attention=False,
        dtype="bfloat16",
    ),
}
_GPT2 = {"vocab_size": 96, "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 512}
_NEOX = {"rotary_emb_base": 10000, "rotary_pct": 0.25, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
GPTS: dict[str, Json] = {
    "gpt2": {
        "model_type": "gpt2",
        **_GPT2,
        "n_ctx": 512,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "_num_labels": 1,
    },
    "gpt2/other names": {
        "model_type": "gpt2",
        "vocab_size": 96,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "max_position_embeddings": 512,
        "activation_function": "gelu",
        "n_inner": 256,
        "reorder_and_upcast_attn": True,
    },
    "gpt_neox": _of("gpt_neox", **_NEOX, use_parallel_residual=True, hidden_dropout=0.1),
    "gpt_neox/version 4": _of(
        "gpt_neox",
        **_NEOX,
        use_parallel_residual=False,
        rope_theta=10000,
        partial_rotary_factor=0.25,
        attention_probs_dropout_prob=0,
        custom_pipelines={"text-generation": {"impl": "x.Y"}},
        type_vocab_size=16,
        is_decoder=True,
    ),
}
_T5 = {"model_type": "t5", "vocab_size": 96, "d_model": 48, "d_kv": 16, "d_ff": 56, "num_heads": 4}
_T5_IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SEQ2SEQ: dict[str, Json] = {
    "bart": {
        "model_type": "bart",
        "vocab_size": 96,
        "d_model": 48,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "num_hidden_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 56,
        "decoder_ffn_dim": 40,
        "max_position_embeddings": 512,
        "activation_function": "gelu",
        "normalize_before": False,
        "normalize_embedding": True,
        "static_position_embeddings": False,
        "extra_pos_embeddings": 2,
        "scale_embedding": False,
        "force_bos_token_to_be_generated": True,
        "prefix": " ",
        "num_labels": 3,
        "output_past": True,
    },
    "t5": _T5 | _T5_IDS | {"num_layers": 2, "n_positions": 512, "dropout_rate": 0.1},
    "t5/gated": _T5
    | _T5_IDS
    | {
        "num_layers": 2,
        "num_decoder_layers": 1,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "relative_attention_max_distance": 64,
    },
}
RELEASED: dict[str, Json] = {
    **{f"llama/{name}": config for name, config in LLAMAS.items()},
    **WINDOWS,
    **PHIS,
    **GEMMAS,
    **GPTS,
    **SEQ2SEQ,
}
