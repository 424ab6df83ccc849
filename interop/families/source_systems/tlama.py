"""tlama-core's `Transformer(TlamaConfig)` (`model_type: tlama`): rotated pairs are adjacent."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.decoder_axes import decoder_sizes, head_pairs
from jaxllm.interop.families.common.family import Derived, Family, Layout, RuleTable, without_type
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.unsupported import refuse, unsupported_by_head_dim
from jaxllm.interop.families.meta.params_json import mlp_width, width_fields
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule
from jaxllm.layers.attention.rope import rope_frequencies


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads the constructor's arguments; missing ones have the constructor's defaults."""
    # How the model was run, not what it computes: fairscale layers and the cache.
    fields.ignore("model_type", "use_parallel", "kv_cache", "max_batch_size")
    heads = fields.take("n_heads", int, 32)
    width = fields.take("d_model", int, 4096)
    multiplier = fields.take("ffn_dim_multiplier", float, None)
    init = fields.take("weight_init", list, [0.02, 0.0])
    if len(init) != 2 or type(init[0]) not in (int, float) or init[1] != 0:
        fields.problems.append(f"weight_init={init!r} must be [std, 0.0]")
        init = [0.02, 0.0]
    config = {
        "vocab_size": fields.take("vocab_size", int, 128000),
        "embed_dim": width,
        "num_layers": fields.take("n_layers", int, 32),
        "num_heads": heads,
        "num_kv_heads": fields.take("n_kv_heads", int, heads),
        "head_dim": width // max(heads, 1),
        "mlp_dim": mlp_width(
            width, fields.take("multiple_of", int, 256), multiplier, thirds=multiplier is None
        ),
        "max_len": fields.take("max_seq_len", int, 2048),
        "norms.eps": fields.take("norm_eps", float, 1e-5),
        "rope.theta": fields.take("rope_theta", float, 500000.0),
        "init.std": init[0],
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes the constructor's arguments. Raises ValueError for what they do not support."""
    refuse("TlamaConfig", config, ("rope.theta", "head.tied"), unsupported_by_head_dim(config))
    json = {
        **base,
        "model_type": "tlama",
        "d_model": config.embed_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        **width_fields(config, base, thirds_with_multiplier=False),
        "norm_eps": config.norms.eps,
        "rope_theta": config.rope.theta,
        "max_seq_len": config.max_len,
        "weight_init": [config.init.std, 0.0],
    }
    return {name: value for name, value in json.items() if value is not None}


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor. The format has no tied head: it is stored as a copy."""
    pairs = head_pairs(config)
    attn, ffn = "layers.{L}.attention.", "layers.{L}.ffn."
    tied = {"output.weight": "token_emb.weight"} if config.head.tied else {}
    head = () if tied else (Rule("output.weight : V D", "lm_head.kernel : D V"),)
    return RuleTable(
        rules=(
            Rule("token_emb.weight : V D", "embed.embedding : V D"),
            Rule("layers.{L}.attention_norm.weight : D", "layers.{L}.attn_norm.scale : D"),
            Rule(attn + "Wq.weight : (N h r) D", "layers.{L}.attn.q_proj.kernel : D N " + pairs),
            Rule(attn + "Wk.weight : (K h r) D", "layers.{L}.attn.k_proj.kernel : D K " + pairs),
            Rule(attn + "Wv.weight : (K H) D", "layers.{L}.attn.v_proj.kernel : D K H"),
            Rule(attn + "Wo.weight : D (N H)", "layers.{L}.attn.o_proj.kernel : N H D"),
            Rule("layers.{L}.ffn_norm.weight : D", "layers.{L}.mlp_norm.scale : D"),
            Rule(ffn + "w1.weight : F D", "layers.{L}.mlp.gate_proj.kernel : D F"),
            Rule(ffn + "w3.weight : F D", "layers.{L}.mlp.up_proj.kernel : D F"),
            Rule(ffn + "w2.weight : D F", "layers.{L}.mlp.down_proj.kernel : F D"),
            Rule("norm.weight : D", "final_norm.scale : D"),
            *head,
        ),
        tied=tied,
        copies=tuple(tied),
        sizes=decoder_sizes(config),
        derived=(Derived("freq_cis", lambda: rotations(config)),),
    )


def rotations(config: DecoderConfig) -> np.ndarray:
    """Returns the buffer `freq_cis`, exp(i position frequency): (2 max_len, H/2), complex64."""
    frequencies = rope_frequencies(config.head_dim, config.rope.theta, None)
    angles = np.outer(np.arange(2 * config.max_len, dtype=np.float32), frequencies)
    return (np.cos(angles) + 1j * np.sin(angles)).astype(np.complex64)


def reference(fields: Json) -> Any:
    """Builds the PyTorch reference, without a cache."""
    from jaxllm.interop.reference.tlama.model import TlamaConfig, Transformer

    return Transformer(TlamaConfig(**{**without_type(fields), "kv_cache": False}))


TLAMA = Family(
    name="tlama",
    format="tlama",
    config_file="config.json",
    model_type="tlama",
    read_config=read_config,
    write_config=write_config,
    table=table,
    reference=reference,
)
