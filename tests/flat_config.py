"""A decoder config in the old flat format, and the config that it must be read as."""

from typing import Any

from jaxllm.config import (
    AttentionConfig,
    DecoderConfig,
    HeadConfig,
    InitConfig,
    LayerKind,
    MlpConfig,
    NormConfig,
    NumericsConfig,
    RopeConfig,
    RopeScaling,
    TemperatureConfig,
)

FLAT: dict[str, Any] = {
    **{"embed_dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16},
    **{"mlp_dim": 56, "max_len": 512},
    "pattern": [
        {"sees": "window", "rope": "local", "mlp": "dense"},
        {"sees": "all", "rope": "global", "mlp": "dense"},
    ],
    **{"norm": "rms_plus_one", "norm_placement": "sandwich", "norm_eps": 1e-06},
    **{"embed_norm": False, "final_norm": True, "final_norm_eps": None},
    **{"causal": True, "cross_attention": False},
    **{"positions": "rope", "waves": "power", "position_offset": 0, "relative": None},
    **{"rope_theta": 500000.0, "local_rope_theta": 10000.0, "rope_fraction": 1.0},
    "rope_layout": "half",
    "rope_scaling": {
        **{"kind": "linear", "factor": 2.0, "original_max_len": 8192, "attention_factor": None},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0},
        **{"truncate": True, "short_factor": [], "long_factor": []},
    },
    **{"qkv_bias": False, "attn_out_bias": False, "qk_norm": "head", "attn_scale": 0.25},
    "attn_softcap": None,
    "attn_temperature": {"scale": 0.2, "floor_scale": 8192.0},
    **{"window": 8, "chunk": None},
    **{"activation": "gelu_tanh", "gated_mlp": True, "mlp_bias": False, "experts": None},
    **{"embed_scale": 5.0, "dropout": 0.0, "init": "xavier", "init_std": 0.02},
    **{"param_dtype": "float32", "dtype": "bfloat16", "scan_layers": True, "remat": "none"},
    **{"vocab_size": 96, "vision": None, "tie_embeddings": True, "head_bias": False},
    **{"logit_scale": 1.0, "logit_softcap": 30.0},
}
MEANT = DecoderConfig(
    vocab_size=96,
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=56,
    max_len=512,
    pattern=(LayerKind(attention="window", rope="local"), LayerKind()),
    embed_scale=5.0,
    norms=NormConfig(kind="rms_plus_one", placement="sandwich", eps=1e-6),
    rope=RopeConfig(theta=5e5, scaling=RopeScaling(kind="linear", factor=2.0)),
    attention=AttentionConfig(
        qk_norm="head", scale=0.25, temperature=TemperatureConfig(scale=0.2), window=8
    ),
    mlp=MlpConfig(activation="gelu_tanh"),
    init=InitConfig(kind="xavier"),
    numerics=NumericsConfig(dtype="bfloat16"),
    head=HeadConfig(tied=True, softcap=30.0),
)
