"""Multi-head, multi-query and group-query attention with a cache (`transformer_components.md`).

With `expanding_context`, a query sees everything before it; without, a sliding window of the last
`max_seq_len` tokens up to itself. Results are the same with and without the cache.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from jaxllm.interop.reference.attention import Attend, create_causal_mask

AttentionKind = Literal["mha", "mqa", "gqa"]


class GroupQueryAttention(nn.Module):
    """Attention whose groups of query heads share a key/value head (Ainslie et al., 2023).

    Raises ValueError if the heads do not divide into groups, or the width into heads.
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
        """Clears the cache."""
        self.cache: tuple[Tensor, Tensor] | None = None  # keys and values, BSKH
        self.encoded: Tensor | None = (
            None  # in cross-attention: the encoder output they were computed from
        )

    def forward(
        self,
        query_BTD: Tensor,
        key_BSD: Tensor | None = None,
        value_BSD: Tensor | None = None,
        expanding_context: bool = True,
    ) -> Tensor:
        """Returns the attention output, BTD.

        Without other keys this is self-attention to the query's tokens and the cache.
        """
        is_self = key_BSD is None or key_BSD is query_BTD
        key_BSD = query_BTD if key_BSD is None else key_BSD
        value_BSD = key_BSD if value_BSD is None else value_BSD
        if is_self:
            k_BSKH, v_BSKH = self.appended(key_BSD, value_BSD, expanding_context)
            mask_TS = self.mask(query_BTD.shape[1], k_BSKH.shape[1], expanding_context)
        else:
            k_BSKH, v_BSKH = self.remembered(key_BSD, value_BSD)
            mask_TS = None  # every key is visible
        q_BTNH = self.q_proj(query_BTD).unflatten(-1, (-1, self.head_dim))
        out_BTNH = self.attend(q_BTNH, k_BSKH, v_BSKH, mask_TS)
        return self.out_proj(out_BTNH.flatten(-2))

    def project(self, key_BSD: Tensor, value_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Projects to keys and values, both BSKH."""
        k_BSKH = self.k_proj(key_BSD).unflatten(-1, (-1, self.head_dim))
        v_BSKH = self.v_proj(value_BSD).unflatten(-1, (-1, self.head_dim))
        return k_BSKH, v_BSKH

    def appended(self, key: Tensor, value: Tensor, expanding: bool) -> tuple[Tensor, Tensor]:
        """Appends to the cached keys and values; a sliding window drops the oldest afterwards."""
        k_BSKH, v_BSKH = self.project(key, value)
        if self.cache is not None:
            k_BSKH = torch.cat([self.cache[0], k_BSKH], dim=1)
            v_BSKH = torch.cat([self.cache[1], v_BSKH], dim=1)
        if self.use_kv_cache:
            kept = slice(None) if expanding else slice(-self.window(), None)
            self.cache = k_BSKH[:, kept], v_BSKH[:, kept]
        return k_BSKH, v_BSKH

    def remembered(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values of the encoder output, projected once per tensor if cached."""
        if not self.use_kv_cache:
            return self.project(key, value)
        if self.cache is None or self.encoded is not key:
            self.cache, self.encoded = self.project(key, value), key
        return self.cache

    def mask(self, num_queries: int, num_keys: int, expanding: bool) -> Tensor:
        """Returns which keys each query sees, TS; the queries are at the last T positions."""
        mask_TS = torch.ones(num_queries, num_keys, dtype=torch.bool)
        if self.apply_causal_mask:
            mask_TS = create_causal_mask(num_queries, num_keys)
        return mask_TS if expanding else mask_TS.triu(num_keys - num_queries - self.window() + 1)

    def window(self) -> int:
        """Returns the size of the sliding window in tokens. Raises ValueError if there is none."""
        if self.max_seq_len is None:
            raise ValueError("expanding_context=False needs a sliding window, but max_seq_len=None")
        return self.max_seq_len


class MultiHeadAttention(GroupQueryAttention):
    """Attention with a key/value head for each query head (Vaswani et al., 2017)."""

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
    """Attention with one key/value head for all query heads (Shazeer, 2019)."""

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
    """Builds the attention of this type; only "gqa" uses `num_groups`.

    Raises ValueError for an unknown type.
    """
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
