"""What several spellings cannot say, and whether a config has it, as `refuse` takes it."""

from jaxllm.config import StackConfig


def unsaid_values(config: StackConfig, **said: object) -> dict[str, bool]:
    """Fields with other values than the one that is said: `unsaid_values(config, norm="layer")`."""
    return {
        f"{name}={getattr(config, name)!r}": getattr(config, name) != value
        for name, value in said.items()
    }


def unsaid_of_one_bias(config: StackConfig) -> dict[str, bool]:
    """Where one field, such as `attention_bias`, is about all projections of attention."""
    uneven = config.qkv_bias != config.attn_out_bias
    return {"qkv_bias without attn_out_bias, or the reverse": uneven}


def unsaid_of_head_dim(config: StackConfig) -> dict[str, bool]:
    """Where the heads share the width."""
    is_derived = config.head_dim * config.num_heads == config.embed_dim
    return {f"head_dim={config.head_dim} is not embed_dim / num_heads": not is_derived}


def unsaid_of_equal_heads(config: StackConfig) -> dict[str, bool]:
    """Where, besides, there are as many of keys and values as of queries."""
    given = f"num_kv_heads={config.num_kv_heads} of num_heads={config.num_heads}"
    return {given: config.num_kv_heads != config.num_heads, **unsaid_of_head_dim(config)}
