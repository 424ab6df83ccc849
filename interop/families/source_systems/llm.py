"""`LLM(ModelArgs)` (`model_type: llm`): Llama 4 in one file, with its own names for the MLP."""

from collections.abc import Mapping
from typing import Any

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.fairscale import without_shards
from jaxllm.interop.families.common.family import Derived, Family, Layout, RuleTable, without_type
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.families.meta.llama4_args import (
    SUPPORTED,
    implied_scaling,
    read_llama4,
    unsupported_by_llama4,
    write_llama4,
)
from jaxllm.interop.families.meta.params_json import read_llama, unsupported_by_llama, write_llama
from jaxllm.interop.families.meta.tensor_names import (
    FREQUENCIES,
    IGNORED,
    copied_heads,
    frequencies,
    has_frequencies,
    llama_rules,
    names_in,
    sharded_sizes,
)
from jaxllm.interop.formats.stored_tensor import StoredTensor

NAMES = ("dense:feed_forward.w_gate.weight", "dense:feed_forward.w_out.weight")


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads the constructor's arguments; missing ones have the constructor's defaults."""
    fields.ignore("model_type", "batch_size", "max_batch_size")  # sizes of the cache
    config = {
        **read_llama(fields, theta=500000.0, scaling=implied_scaling),
        **read_llama4(fields),
        "vocab_size": fields.take("vocab_size", int),
        "norms.eps": fields.take("norm_eps", float, 1e-5),
        "max_len": fields.take("max_seq_len", int, 2048),
    }
    return config, Layout(names=names_in(stored, config["pattern"]))


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes the constructor's arguments. Raises ValueError for what they do not support."""
    refuse(
        "ModelArgs",
        config,
        ("rope.theta", "rope.scaling", "head.tied", *SUPPORTED),
        {**unsupported_by_llama(config), **unsupported_by_llama4(config)},
    )
    json = {
        **write_llama(config, base, scaling=implied_scaling),
        **write_llama4(config, base),
        "model_type": "llm",
        "max_seq_len": config.max_len,
    }
    return {name: value for name, value in json.items() if value is not None}


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of the state dict."""
    names = layout.names or NAMES
    tied = copied_heads(config, names, [""])
    derived = [FREQUENCIES] if has_frequencies(names) else []
    return RuleTable(
        tuple(map(without_shards, llama_rules(config, names))),
        sharded_sizes(config, 1),
        tied=tied,
        copies=tuple(tied),
        derived=tuple(Derived(name, lambda: frequencies(config)) for name in derived),
        ignored=IGNORED,
    )


# Cache size of the reference, which writes its caches in every pass.
CACHE_SIZE = {"batch_size": 8, "max_seq_len": 1024}


def reference(fields: Json) -> Any:
    """Builds the PyTorch reference."""
    from jaxllm.interop.reference.llm.model import LLM, ModelArgs

    return LLM(ModelArgs.from_json({**without_type(fields), **CACHE_SIZE}))


def arguments(model: Any, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the reference's arguments: the tokens, at position 0."""
    from jaxllm.interop.reference.llm.model import TransformerInput

    return (TransformerInput(given["target"], 0),)


LLM = Family(
    name="llm",
    format="llm",
    config_file="config.json",
    model_type="llm",
    read_config=read_config,
    write_config=write_config,
    table=table,
    reference=reference,
    arguments=arguments,
)
