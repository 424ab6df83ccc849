"""The spellings that an `LLM` can be loaded from, and the merging of Meta's model-parallel shards.

Each module's `load_hook` renames what it knows before the keys are compared, so that strict loading
holds. A tensor that is there under both names is left alone, and strict loading complains.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import ModelArgs


def rename(state_dict: dict[str, Any], prefix: str, names: Mapping[str, str]) -> None:
    """Gives each tensor that has an old name, after the prefix, its new one."""
    for old, new in names.items():
        if prefix + old in state_dict and prefix + new not in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)


def split(state_dict: dict[str, Any], prefix: str, fused: str, parts: Mapping[str, int]) -> None:
    """Cuts the rows of a fused tensor into those of its parts, in their order.

    Raises ValueError if it has not as many as they have together.
    """
    if prefix + fused not in state_dict or any(prefix + name in state_dict for name in parts):
        return
    tensor, sizes = state_dict.pop(prefix + fused), list(parts.values())
    if len(tensor) != sum(sizes):
        raise ValueError(f"{prefix}{fused} has {len(tensor)} rows; {' + '.join(map(str, sizes))}")
    for name, part in zip(parts, tensor.split(sizes), strict=True):
        state_dict[prefix + name] = part


def drop_derived(state_dict: dict[str, Any], prefix: str) -> None:
    """Removes what follows from the arguments or tells how training went."""
    derived = re.compile(re.escape(prefix) + r"(rope\.freqs|(.*\.)?_extra_state)")
    for name in filter(derived.fullmatch, list(state_dict)):
        del state_dict[name]


def merge_shards(shards: Sequence[Mapping[str, Any]], args: ModelArgs) -> dict[str, Tensor]:
    """The state dict that fairscale cut into these, in order of their rank, in its own spelling.

    Raises ValueError if the shards name different tensors, or if what is copied to each differs.
    """
    copies = [dict(shard) for shard in shards]
    for copy in copies:
        drop_derived(copy, "")
        if differing := copy.keys() ^ copies[0].keys():
            raise ValueError(f"not in every one of {len(shards)} shards: {sorted(differing)}")
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
            raise ValueError(f"shards 0 and {rank} hold different copies")
    return parts[0]


def _rows(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    return torch.cat(list(parts), dim=0)


def _columns(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    return torch.cat(list(parts), dim=-1)


def _embedding(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """By rows of the vocabulary (Llama 3 and 4), or by width (Llama 2)."""
    return (_rows if parts[0].shape[1] == args.dim else _columns)(parts, args)


def _key_value_heads(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Rows; with more shards than heads, neighbouring shards hold copies of the same head."""
    wanted = args.num_kv_heads * args.dim // args.n_heads
    copies = max(1, sum(len(part) for part in parts) // wanted)
    groups = [parts[i : i + copies] for i in range(0, len(parts), copies)]
    return _rows([_copied(group, args) for group in groups], args)


def _queries_keys_values(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Each shard holds its queries, then its keys, then its values."""
    num_queries = args.dim // len(parts)
    num_keys = (len(parts[0]) - num_queries) // 2
    q, k, v = zip(*(part.split([num_queries, num_keys, num_keys]) for part in parts), strict=True)
    return torch.cat([_rows(q, args), _key_value_heads(k, args), _key_value_heads(v, args)])


def _gates_then_values(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """Each shard holds its gates, then its values."""
    return torch.cat([part.unflatten(0, (2, -1)) for part in parts], dim=1).flatten(0, 1)


def _rows_of_each_expert(parts: Sequence[Tensor], args: ModelArgs) -> Tensor:
    """(E F/T, D) to (E F, D): the experts are not what is cut."""
    if args.moe_args is None:
        raise ValueError(f"experts, but moe_args={args.moe_args}")
    E = args.moe_args.num_experts
    return torch.cat([part.unflatten(0, (E, -1)) for part in parts], dim=1).flatten(0, 1)


# How what fairscale cut is joined, by the end of a tensor's name. All else is copied to each shard.
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
