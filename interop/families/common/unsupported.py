"""Refuses configs that a format cannot express.

The functions `unsupported_...` return what `refuse` takes as `unsupported`.
"""

from collections.abc import Collection, Mapping

from jaxllm.config import StackConfig, defaults, flatten

# Fields that every format supports: sizes, and what does not affect a forward pass.
_ALWAYS_SUPPORTED = {
    *("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
    *("max_len", "norms.eps", "rope.layout", "init.std", "numerics.param_dtype", "numerics.dtype"),
    *("numerics.wide_residual", "scan_layers", "remat", "dropout", "init.kind"),
    *("attention.kernel", "numerics.reduce_dtype", "norms.sequence_parallel"),
    "numerics.matmul_dtype",
}


def refuse(
    format_name: str,
    config: StackConfig,
    supported: Collection[str],
    unsupported: Mapping[str, bool],
) -> None:
    """Raises ValueError listing everything in the config that a format does not support.

    Args:
        format_name: the name of the format, for the message.
        config: every field of it that differs from the default (Llama's) must be in `supported`.
        supported: dotted names of the fields that the format supports.
        unsupported: maps descriptions of unsupported values of these fields to whether the config
            has them.
    """
    default = defaults(type(config))
    unknown_fields = {
        f"{name}={value!r}": value != default.get(name)
        for name, value in flatten(config).items()
        if name not in {*_ALWAYS_SUPPORTED, *supported}
    }
    found = {**unknown_fields, **unsupported}
    if problems := [description for description, is_present in found.items() if is_present]:
        raise ValueError(f"{format_name} does not support {'; '.join(problems)}")


def unsupported_values(config: StackConfig, supported: Mapping[str, object]) -> dict[str, bool]:
    """Flags fields, by dotted name, that differ from the only value that a format supports.

    Example: `unsupported_values(config, {"norms.kind": "layer"})`.
    """
    given = flatten(config)
    return {f"{name}={given[name]!r}": given[name] != value for name, value in supported.items()}


def unsupported_by_one_bias(config: StackConfig) -> dict[str, bool]:
    """For formats with one field, such as `attention_bias`, for all projections of attention."""
    uneven = config.attention.qkv_bias != config.attention.out_bias
    return {"attention.qkv_bias without attention.out_bias, or the reverse": uneven}


def unsupported_by_head_dim(config: StackConfig) -> dict[str, bool]:
    """For formats whose head width is always embed_dim / num_heads."""
    is_derived = config.head_dim * config.num_heads == config.embed_dim
    return {f"head_dim={config.head_dim} other than embed_dim / num_heads": not is_derived}


def unsupported_by_equal_heads(config: StackConfig) -> dict[str, bool]:
    """For formats that also have as many key/value heads as query heads."""
    given = f"num_kv_heads={config.num_kv_heads} with num_heads={config.num_heads}"
    return {given: config.num_kv_heads != config.num_heads, **unsupported_by_head_dim(config)}
