"""Llama 2 and 3 as Meta releases them: `params.json` and model-parallel `consolidated.NN.pth`.

Rotated pairs are neighbours. fairscale splits the rows of a column-parallel projection and the
columns of a row-parallel one over the shards T, and copies the norms to each.
"""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig, RopeScaling
from jaxllm.interop.rules import Rule
from jaxllm.interop.tensors import StoredTensor

from .family import Family, Fields, Json, Layout, Table, decoder_sizes, head_pairs, refuse
from .meta_fields import mlp_width, unsaid_by_meta, width_fields

# The constants of Meta's own `apply_scaling`, where `params.json` does not give them.
SCALED_ROPE = RopeScaling(kind="llama3", factor=8.0, high_freq_factor=4.0)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """The config of a `params.json`; a vocabulary size of -1 (Llama 2) is read off the tensors."""
    fields.ignore("max_batch_size", "max_seq_len")  # the sizes of a cache, not of the model
    shards = len({name.partition("/")[0] for name in stored})
    heads = fields.take("n_heads", int)
    width = fields.take("dim", int)
    vocab = fields.take("vocab_size", int, -1)
    head = stored.get("00/output.weight")
    if vocab < 0 and head is not None:
        vocab = head.shape[0] * shards
    theta = fields.take("rope_theta", float, 10000.0)
    scaling = _read_scaling(fields)
    multiplier = fields.take("ffn_dim_multiplier", float, None)
    config = {
        "vocab_size": vocab,
        "embed_dim": width,
        "num_layers": fields.take("n_layers", int),
        "num_heads": heads,
        "num_kv_heads": fields.take("n_kv_heads", int, heads),
        "head_dim": width // max(heads, 1),
        "mlp_dim": mlp_width(width, fields.take("multiple_of", int, 256), multiplier, thirds=True),
        "max_len": _released_length(theta, scaling),
        "norm_eps": fields.take("norm_eps", float),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }
    table = stored.get("00/tok_embeddings.weight")
    is_cut_in_width = table is not None and shards > 1 and table.shape[1:] == (width // shards,)
    return config, Layout(shards, "width" if is_cut_in_width else "vocab")


def _read_scaling(fields: Fields) -> RopeScaling | None:
    used = fields.take("use_scaled_rope", bool, False)
    factor = fields.take("rope_scaling_factor", float, SCALED_ROPE.factor)
    high = fields.take("rope_high_freq_factor", float, SCALED_ROPE.high_freq_factor)
    if not used:
        return None
    return fields.build(RopeScaling, kind="llama3", factor=factor, high_freq_factor=high)


def _released_length(theta: float, scaling: RopeScaling | None) -> int:
    """The context of the released models, which `params.json` leaves out: Llama 2, 3, 3.1."""
    if scaling is not None:
        return 131072
    return 8192 if theta >= 500000 else 4096


def write_config(config: DecoderConfig, base: Json) -> Json:
    """A `params.json`. Raises ValueError for what it cannot say."""
    scaling = config.rope_scaling
    unsaid = {
        **unsaid_by_meta(config),
        "linear RoPE scaling": scaling is not None and scaling.kind != "llama3",
        "RoPE low_freq_factor and original_max_len other than 1 and 8192": (
            scaling is not None
            and (scaling.low_freq_factor, scaling.original_max_len) != (1.0, 8192)
        ),
    }
    refuse("params.json", config, ("rope_theta", "rope_scaling", "tie_embeddings"), unsaid)
    json = {
        **base,
        "dim": config.embed_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        **width_fields(config, base, thirds_with_multiplier=True),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": scaling is not None,
    }
    if scaling is not None and scaling != SCALED_ROPE:
        json["rope_scaling_factor"] = scaling.factor
        json["rope_high_freq_factor"] = scaling.high_freq_factor
    return {name: value for name, value in json.items() if value is not None}


def table(config: DecoderConfig, layout: Layout) -> Table:
    """Every tensor of every shard. A tied head, which this format does not know, is written out.

    Raises ValueError if the shards do not divide the heads, the MLP or the embedding.
    """
    pairs = head_pairs(config)
    sizes = _sharded_sizes(config, layout)
    layer = "{T:02}/layers.{L}."
    attn, mlp = layer + "attention.", layer + "feed_forward."
    embedding = "v D" if layout.embedding_split == "vocab" else "V d"
    rows = "(T v) D" if layout.embedding_split == "vocab" else "V (T d)"
    rules = [
        Rule("{T:02}/tok_embeddings.weight : " + embedding, "embed.embedding : " + rows),
        Rule(layer + "attention_norm.weight : D", "layers.{L}.attn_norm.scale : D", "T"),
        Rule(attn + "wq.weight : (n h r) D", "layers.{L}.attn.q_proj.kernel : D (T n) " + pairs),
        Rule(attn + "wk.weight : (k h r) D", "layers.{L}.attn.k_proj.kernel : D (T k) " + pairs),
        Rule(attn + "wv.weight : (k H) D", "layers.{L}.attn.v_proj.kernel : D (T k) H"),
        Rule(attn + "wo.weight : D (n H)", "layers.{L}.attn.o_proj.kernel : (T n) H D"),
        Rule(layer + "ffn_norm.weight : D", "layers.{L}.mlp_norm.scale : D", "T"),
        Rule(mlp + "w1.weight : f D", "layers.{L}.mlp.gate_proj.kernel : D (T f)"),
        Rule(mlp + "w3.weight : f D", "layers.{L}.mlp.up_proj.kernel : D (T f)"),
        Rule(mlp + "w2.weight : D f", "layers.{L}.mlp.down_proj.kernel : (T f) D"),
        Rule("{T:02}/norm.weight : D", "final_norm.scale : D", "T"),
    ]
    head = "embed.embedding : (T v) D" if config.tie_embeddings else "lm_head.kernel : D (T v)"
    rules.append(Rule("{T:02}/output.weight : v D", head))
    return Table(tuple(rules), sizes, ignored={"*/rope.freqs": "derived from the config"})


def _sharded_sizes(config: DecoderConfig, layout: Layout) -> dict[str, int]:
    """The decoder's axes, T shards, and in lower case what a shard has of each split axis."""
    sizes, T = decoder_sizes(config), layout.model_parallel
    named = {"num_heads": "N", "num_kv_heads": "K", "mlp_dim": "F", "vocab_size": "V"}
    if layout.embedding_split == "width":
        named["embed_dim"] = "D"
    if wrong := [f"{name}={sizes[axis]}" for name, axis in named.items() if sizes[axis] % T]:
        raise ValueError(f"{T} model-parallel shards do not divide {', '.join(wrong)}")
    return {**sizes, "T": T, **{axis.lower(): sizes[axis] // T for axis in named.values()}}


META_LLAMA = Family(
    name="meta-llama",
    format="meta",
    storage="consolidated",
    config_file="params.json",
    model_type=None,
    read_config=read_config,
    write_config=write_config,
    table=table,
)
