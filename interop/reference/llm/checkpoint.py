"""Loading an `LLM` from other state dict formats, and merging Meta's model-parallel shards.

Each module's `load_hook` renames the tensors it knows before keys are compared, so that strict
loading works. A tensor present under both names is left alone, and strict loading reports it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import ModelArgs


def rename(state_dict: dict[str, Any], prefix: str, names: Mapping[str, str]) -> None:
    """Renames tensors in place; `names` maps old to new names, without the prefix."""
    for old, new in names.items():
        if prefix + old in state_dict and prefix + new not in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)


def split(state_dict: dict[str, Any], prefix: str, fused: str, parts: Mapping[str, int]) -> None:
    """Splits the rows of a fused tensor in place; `parts` maps names to row counts, in order.

    Raises ValueError if the row counts do not add up to the rows of the tensor.
    """
    if prefix + fused not in state_dict or any(prefix + name in state_dict for name in parts):
        return
    tensor, sizes = state_dict.pop(prefix + fused), list(parts.values())
    if len(tensor) != sum(sizes):
        raise ValueError(
            f"{prefix}{fused} has {len(tensor)} rows, not {' + '.join(map(str, sizes))}"
        )
    for name, part in zip(parts, tensor.split(sizes), strict=True):
        state_dict[prefix + name] = part


def drop_derived(state_dict: dict[str, Any], prefix: str) -> None:
    """Removes tensors that follow from the arguments or are bookkeeping of training."""
    derived = re.compile(re.escape(prefix) + r"(rope\.freqs|(.*\.)?_extra_state)")
    for name in filter(derived.fullmatch, list(state_dict)):
        del state_dict[name]


def merge_shards(shards: Sequence[Mapping[str, Any]], args: ModelArgs) -> dict[str, Tensor]:
    """Merges fairscale's shards, in order of rank, into one state dict with the same names.

    Raises ValueError if the shards have different tensor names, or if tensors that every shard
    holds a copy of differ.
    """
    copies = [dict(shard) for shard in shards]
    for copy in copies:
        drop_derived(copy, "")
        if differing := copy.keys() ^ copies[0].keys():
            raise ValueError(
                f"tensors missing from some of the {len(shards)} shards: {sorted(differing)}"
            )
    merged = {}
    for name in copies[0]:
        try:
            merged[name] = _join_of(name)([copy[name] for copy in copies], args)
        except ValueError as problem:
            raise ValueError(f"{name}: {problem}") from problem
    return merged


Join = Callable[[Sequence[Tensor], ModelArgs], Tensor]


def _join_of(name: str) -> Join:
    for pattern, join in JOINS:
        if re.search(rf"(^|\.)({pattern})$", name):
            return join
    return _copied


def _copied(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    for rank, part in enumerate(parts):
        if not torch.equal(part, parts[0]):
            raise ValueError(f"the copies in shards 0 and {rank} differ")
    return parts[0]


def _rows(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    return torch.cat(list(parts), dim=0)


def _columns(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    return torch.cat(list(parts), dim=-1)


def _embedding(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Joins along the vocabulary (Llama 3 and 4) or along the width (Llama 2)."""
    return (_rows if parts[0].shape[1] == args.dim else _columns)(parts, args)


def _key_value_heads(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Joins rows; with more shards than heads, neighboring shards hold copies of one head."""
    wanted = args.num_kv_heads * args.dim // args.n_heads
    copies = max(1, sum(len(part) for part in parts) // wanted)
    groups = [parts[i : i + copies] for i in range(0, len(parts), copies)]
    return _rows([_copied(group, args) for group in groups], args)


def _queries_keys_values(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Joins fused projections; each shard holds its queries, then keys, then values."""
    num_queries = args.dim // len(parts)
    num_keys = (len(parts[0]) - num_queries) // 2
    q, k, v = zip(*(part.split([num_queries, num_keys, num_keys]) for part in parts), strict=True)
    return torch.cat([_rows(q, args), _key_value_heads(k, args), _key_value_heads(v, args)])


def _gates_then_values(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Joins fused gates and values; each shard holds its gates, then its values."""
    return torch.cat([part.unflatten(0, (2, -1)) for part in parts], dim=1).flatten(0, 1)


def _rows_of_each_expert(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Joins (E F/T, D) to (E F, D): the width of each expert is split, not the experts."""
    if args.moe_args is None:
        raise ValueError(f"the tensor holds experts, but moe_args={args.moe_args}")
    E = args.moe_args.num_experts
    return torch.cat([part.unflatten(0, (E, -1)) for part in parts], dim=1).flatten(0, 1)


# How split tensors are joined, by the end of their names. All others are copied to every shard.
JOINS: tuple[tuple[str, Join], ...] = (
    (r"tok_embeddings\.weight", _embedding),
    (r"(output|lm_head|vision_projection|conv1\._linear)\.weight", _rows),
    (r"attention\.wqkv\.weight", _queries_keys_values),
    (r"attention\.wq\.weight", _rows),
    (r"attention\.w[kv]\.weight", _key_value_heads),
    (r"attention\.wo\.weight", _columns),
    (r"feed_forward\.(w1|w3|w_gate|w_value|w_in_shared_FD|w_swiglu_FD)\.weight", _rows),
    (r"feed_forward\.(w2|w_out|w_out_shared_DF)\.weight", _columns),
    (r"feed_forward\.mlp\.fc1_weight", _gates_then_values),
    (r"feed_forward\.mlp\.fc2_weight", _columns),
    (r"feed_forward\.experts\.(moe_w_in_eD_F|moe_w_swiglu_eD_F)", _columns),
    (r"feed_forward\.experts\.moe_w_out_eF_D", _rows_of_each_expert),
    (r"attn\.w[qkv]\.(weight|bias)", _rows),
    (r"attn\.wo\.weight", _columns),
    (r"mlp\.c_fc\.(weight|bias)", _rows),
    (r"mlp\.c_proj\.weight", _columns),
)
