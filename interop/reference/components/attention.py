"""Multi-head, multi-query and group-query attention with a cache, from
`transformer_components.md`.

`expanding_context` says what a query sees: with it everything before, without it the last
`max_seq_len` tokens up to itself, a sliding window. Cached or not, the same is computed.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from jaxllm.interop.reference.attention import Attend, create_causal_mask

AttentionKind = Literal["mha", "mqa", "gqa"]


class GroupQueryAttention(nn.Module):
    """Groups of query heads that share a key and a value head (Ainslie et al., 2023).

    Raises ValueError if heads do not divide into groups, or the width into heads.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_groups: int | None = None,
        apply_causal_mask: bool = False,
        use_kv_cache: bool = False,
        max_seq_len: int | None = None,
    ):
        super().__init__()
        num_groups = max(1, num_heads // 2) if num_groups is None else num_groups
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        if num_heads % num_groups:
            raise ValueError(f"num_heads={num_heads} is not a multiple of num_groups={num_groups}")
        self.head_dim = embed_dim // num_heads
        self.attend = Attend(num_heads // num_groups)
        self.apply_causal_mask = apply_causal_mask
        self.use_kv_cache = use_kv_cache
        self.max_seq_len = max_seq_len
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, num_groups * self.head_dim)
        self.v_proj = nn.Linear(embed_dim, num_groups * self.head_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_cache()

    def reset_cache(self) -> None:
        """Forgets what was seen."""
        self.cache: tuple[Tensor, Tensor] | None = None  # keys and values, BSKH
        self.encoded: Tensor | None = None  # what they were computed from, in cross-attention

    def forward(
        self,
        query_BTD: Tensor,
        key_BSD: Tensor | None = None,
        value_BSD: Tensor | None = None,
        expanding_context: bool = True,
    ) -> Tensor:
        """What the queries gather, BTD: from themselves and the cache if no other key is given."""
        is_self = key_BSD is None or key_BSD is query_BTD
        key_BSD = query_BTD if key_BSD is None else key_BSD
        value_BSD = key_BSD if value_BSD is None else value_BSD
        if is_self:
            k_BSKH, v_BSKH = self.appended(key_BSD, value_BSD, expanding_context)
            mask_TS = self.mask(query_BTD.shape[1], k_BSKH.shape[1], expanding_context)
        else:
            k_BSKH, v_BSKH = self.remembered(key_BSD, value_BSD)
            mask_TS = None  # all of it
        q_BTNH = self.q_proj(query_BTD).unflatten(-1, (-1, self.head_dim))
        out_BTNH = self.attend(q_BTNH, k_BSKH, v_BSKH, mask_TS)
        return self.out_proj(out_BTNH.flatten(-2))

    def project(self, key_BSD: Tensor, value_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, BSKH."""
        k_BSKH = self.k_proj(key_BSD).unflatten(-1, (-1, self.head_dim))
        v_BSKH = self.v_proj(value_BSD).unflatten(-1, (-1, self.head_dim))
        return k_BSKH, v_BSKH

    def appended(self, key: Tensor, value: Tensor, expanding: bool) -> tuple[Tensor, Tensor]:
        """Those of the cache and of these tokens, which it takes in; its oldest may go."""
        k_BSKH, v_BSKH = self.project(key, value)
        if self.cache is not None:
            k_BSKH = torch.cat([self.cache[0], k_BSKH], dim=1)
            v_BSKH = torch.cat([self.cache[1], v_BSKH], dim=1)
        if self.use_kv_cache:
            kept = slice(None) if expanding else slice(-self.window(), None)
            self.cache = k_BSKH[:, kept], v_BSKH[:, kept]
        return k_BSKH, v_BSKH

    def remembered(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the encoder's output, projected once for as long as it is the same tensor."""
        if not self.use_kv_cache:
            return self.project(key, value)
        if self.cache is None or self.encoded is not key:
            self.cache, self.encoded = self.project(key, value), key
        return self.cache

    def mask(self, num_queries: int, num_keys: int, expanding: bool) -> Tensor:
        """Which keys each query sees, TS; the queries are the last of the keys."""
        mask_TS = torch.ones(num_queries, num_keys, dtype=torch.bool)
        if self.apply_causal_mask:
            mask_TS = create_causal_mask(num_queries, num_keys)
        return mask_TS if expanding else mask_TS.triu(num_keys - num_queries - self.window() + 1)

    def window(self) -> int:
        """Tokens in the sliding window. Raises ValueError if there is none."""
        if self.max_seq_len is None:
            raise ValueError("expanding_context=False slides a window, but max_seq_len=None")
        return self.max_seq_len


class MultiHeadAttention(GroupQueryAttention):
    """A key and a value head for each query head (Vaswani et al., 2017)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        apply_causal_mask: bool = False,
        use_kv_cache: bool = False,
        max_seq_len: int | None = None,
    ):
        super().__init__(
            embed_dim, num_heads, num_heads, apply_causal_mask, use_kv_cache, max_seq_len
        )


class MultiQueryAttention(GroupQueryAttention):
    """One key and one value head for all query heads (Shazeer, 2019)."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        apply_causal_mask: bool = False,
        use_kv_cache: bool = False,
        max_seq_len: int | None = None,
    ):
        super().__init__(embed_dim, num_heads, 1, apply_causal_mask, use_kv_cache, max_seq_len)


def get_attention(
    attention_type: AttentionKind,
    embed_dim: int,
    num_heads: int,
    num_groups: int | None = None,
    apply_causal_mask: bool = False,
    use_kv_cache: bool = False,
    max_seq_len: int | None = None,
) -> GroupQueryAttention:
    """The attention of that name; only "gqa" heeds `num_groups`. Raises ValueError for another."""
    options = (apply_causal_mask, use_kv_cache, max_seq_len)
    match attention_type:
        case "mha":
            return MultiHeadAttention(embed_dim, num_heads, *options)
        case "mqa":
            return MultiQueryAttention(embed_dim, num_heads, *options)
        case "gqa":
            return GroupQueryAttention(embed_dim, num_heads, num_groups, *options)
    allowed = ", ".join(get_args(AttentionKind))
    raise ValueError(f"attention_type={attention_type!r} is not one of {allowed}")
