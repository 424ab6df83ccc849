"""Llama 2, 3 and 4 as Meta releases them: `params.json` and one `consolidated.NN.pth` per shard."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig, LayerKind, RopeScaling
from jaxllm.interop.families.common.family import Derived, Family, Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor

from . import llama4_args
from .params_json import read_llama, unsupported_by_llama, write_llama
from .tensor_names import (
    FREQUENCIES,
    HEAD,
    IGNORED,
    copied_heads,
    frequencies,
    has_frequencies,
    llama_rules,
    names_in,
    sharded_sizes,
)

# The factor of scaled RoPE, which no `params.json` of Llama 3 stores, by what tells the releases
# apart: ffn_dim_multiplier.
RELEASED_FACTORS = {
    1.3: 8.0,  # Llama 3.1 8B and 70B, Llama 3.3 70B
    1.2: 8.0,  # Llama 3.1 405B
    1.5: 32.0,  # Llama 3.2 1B
    1.0: 32.0,  # Llama 3.2 3B
}
# Arguments of Llama 3.2's quantized and vision models, and the values that turn them off.
UNIMPLEMENTED = {
    "lora_args": None,
    "quantization_args": None,
    "vision_chunk_size": -1,
    "vision_num_cross_attention_layers": -1,
}
# The vocabulary sizes in files of Llama 1 and 2 and Code Llama; Llama 3 has 128,256 tokens.
LLAMA2_VOCABULARIES = (None, -1, 32000, 32016)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `params.json`; a vocabulary size of -1 (Llama 2) is inferred from the tensors."""
    fields.ignore("max_batch_size", "max_seq_len")  # sizes of the cache, not of the model
    if llama4_args.FIELDS.isdisjoint(fields.data):
        for name, allowed in UNIMPLEMENTED.items():
            fields.require(name, None, allowed)
        if "rope_theta" not in fields.data and not _is_llama2(fields.data):
            fields.problems.append(
                "rope_theta is missing: add it, 10000 for Llama 1 and 2 or 500000 for Llama 3"
            )
        config = read_llama(fields, theta=10000.0, scaling=implied_scaling)
        config["max_len"] = _released_length(config)
    else:
        config = read_llama(fields, theta=500000.0, scaling=llama4_args.implied_scaling)
        config |= llama4_args.read_llama4(fields)
    config["norms.eps"] = fields.take("norm_eps", float)
    shards = len({name.partition("/")[0] for name in stored})
    names = names_in(stored, config.get("pattern", (LayerKind(),)))
    config["vocab_size"] = fields.take("vocab_size", int, -1)
    if config["vocab_size"] < 0:
        heads = (stored[f"00/{name}"] for name in HEAD if f"00/{name}" in stored)
        config["vocab_size"] = next((head.shape[0] * shards for head in heads), -1)
    table, width = stored.get("00/tok_embeddings.weight"), config["embed_dim"]
    is_cut_in_width = table is not None and shards > 1 and table.shape[1:] == (width // shards,)
    return config, Layout(shards, "width" if is_cut_in_width else "vocab", names)


def implied_scaling(params: Json) -> RopeScaling | None:
    """Returns the scaling that `use_scaled_rope` means in a released model, else None."""
    multiplier = params.get("ffn_dim_multiplier")
    factor = RELEASED_FACTORS.get(multiplier) if isinstance(multiplier, int | float) else None
    return None if factor is None else RopeScaling(kind="llama3", factor=factor)


def _is_llama2(params: Json) -> bool:
    """Whether the vocabulary is that of Llama 1 or 2, whose files leave out `rope_theta`."""
    return params.get("vocab_size") in LLAMA2_VOCABULARIES


def _released_length(config: Json) -> int:
    """Returns the context length of the released Llama 2, 3 or 3.1, missing from `params.json`."""
    if config["rope.scaling"] is not None:
        return 131072
    return 8192 if config["rope.theta"] >= 500000 else 4096


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `params.json`. Raises ValueError for what the format does not support."""
    refuse(
        "params.json",
        config,
        ("rope.theta", "rope.scaling", "head.tied", *llama4_args.SUPPORTED),
        {**unsupported_by_llama(config), **llama4_args.unsupported_by_llama4(config)},
    )
    if llama4_args.is_llama4(config) or not llama4_args.FIELDS.isdisjoint(base):
        json = write_llama(config, base, scaling=llama4_args.implied_scaling)
        json |= llama4_args.write_llama4(config, base)
    else:
        json = write_llama(config, base, scaling=implied_scaling)
    return {name: value for name, value in json.items() if value is not None}


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of every shard.

    Raises ValueError if the shards do not divide the heads, the MLPs or the embedding.
    """
    # A head that is a copy of the embedding must be split the same way.
    cut_width = layout.embedding_split == "width" and not config.head.tied
    shards = [f"{rank:02}/" for rank in range(layout.model_parallel)]
    tied = copied_heads(config, layout.names, shards)
    derived = shards if has_frequencies(layout.names) else ()
    return RuleTable(
        tuple(llama_rules(config, layout.names, cut_width=cut_width)),
        sharded_sizes(config, len(shards), cut_width=cut_width),
        tied=tied,
        copies=tuple(tied),
        derived=tuple(Derived(s + FREQUENCIES, lambda: frequencies(config)) for s in derived),
        ignored=IGNORED,
    )


META_LLAMA = Family(
    name="meta-llama",
    format="meta",
    config_file="params.json",
    model_type=None,
    read_config=read_config,
    write_config=write_config,
    table=table,
)
