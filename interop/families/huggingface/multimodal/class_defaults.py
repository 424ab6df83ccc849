"""Defaults of transformers' config classes for sizes that the configs of multimodal models omit."""

from typing import Any

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    "num_attention_heads",
)
# Sizes by the model_type of the text config.
_CLASSES = {
    "llama": (32000, 4096, 11008, 32, 32),
    "mistral": (32000, 4096, 14336, 32, 32),
    "qwen2": (151936, 4096, 22016, 32, 32),
    "qwen3": (151936, 4096, 22016, 32, 32),
    "gemma2": (256000, 2304, 9216, 26, 8),
    "gemma3_text": (262208, 2304, 9216, 26, 8),
    "phi3": (32064, 3072, 8192, 32, 32),
    "olmo2": (50304, 4096, 11008, 32, 32),
    "smollm3": (128256, 2048, 11008, 36, 16),
    "qwen2_vl_text": (152064, 8192, 29568, 80, 64),
    "qwen2_5_vl_text": (152064, 8192, 29568, 80, 64),
    "qwen3_vl_text": (151936, 4096, 22016, 32, 32),
}
_QWEN2_VL: dict[str, Any] = {
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_window_layers": 80,
}
# Other fields in which a class differs from that of the family that reads its configs.
_OTHERS: dict[str, dict[str, Any]] = {
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": {"max_position_embeddings": 128000, "rope_theta": 500000.0},
}
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    name: {**dict(zip(_SIZES, sizes, strict=True)), **_OTHERS.get(name, {})}
    for name, sizes in _CLASSES.items()
}
