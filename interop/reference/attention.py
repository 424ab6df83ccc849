"""Scaled dot-product attention, its causal mask, and the cache of keys and values."""

import torch
from torch import Tensor, nn

from .precision import at_least_float32

HIDDEN = -1e9  # a score: its weight is exactly zero, unless everything is hidden


def scaled_dot_product_attention(
    q_BTNH: Tensor,
    k_BSNH: Tensor,
    v_BSNH: Tensor,
    mask: Tensor | None = None,
    bias_NTS: Tensor | None = None,
) -> Tensor:
    """`softmax(q k / sqrt(H) + bias) v` where the mask, TS or BTS, is True: BTNH.

    A query that sees nothing gets the mean of v.
    """
    scores_BNTS = at_least_float32(torch.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH))
    scores_BNTS = scores_BNTS * q_BTNH.shape[-1] ** -0.5
    if bias_NTS is not None:
        scores_BNTS = scores_BNTS + bias_NTS
    if mask is not None:
        scores_BNTS = scores_BNTS.masked_fill(~mask[..., None, :, :], HIDDEN)
    weights_BNTS = scores_BNTS.softmax(-1).to(v_BSNH.dtype)
    return torch.einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH)


class Attend(nn.Module):
    """Attention to heads of which each serves `n_rep` queries; a module, so that it can be watched.

    It has no numbers of its own.
    """

    def __init__(self, n_rep: int = 1):
        super().__init__()
        self.n_rep = n_rep

    def forward(
        self,
        q_BTNH: Tensor,
        k_BSKH: Tensor,
        v_BSKH: Tensor,
        mask: Tensor | None = None,
        bias_NTS: Tensor | None = None,
    ) -> Tensor:
        """As `scaled_dot_product_attention`, BTNH."""
        k_BSNH, v_BSNH = repeat_kv(k_BSKH, self.n_rep), repeat_kv(v_BSKH, self.n_rep)
        return scaled_dot_product_attention(q_BTNH, k_BSNH, v_BSNH, mask, bias_NTS)


def create_causal_mask(num_queries: int, num_keys: int | None = None) -> Tensor:
    """Lower triangle, TS: the queries are the last of the keys, and see what is not after them."""
    num_keys = num_queries if num_keys is None else num_keys
    return torch.ones(num_keys, num_keys, dtype=torch.bool).tril()[num_keys - num_queries :]


def repeat_kv(kv_BSKH: Tensor, n_rep: int) -> Tensor:
    """Each key/value head for `n_rep` consecutive query heads, BSNH."""
    return kv_BSKH.repeat_interleave(n_rep, dim=2)


def extend_cache(cache_BCKH: Tensor, start_pos: int, fresh_BTKH: Tensor) -> Tensor:
    """Everything up to and with `fresh`, BSKH, which is also written at `start_pos`.

    The gradient flows through what is fresh and stops at what was cached. Raises ValueError if
    the cache is too small.
    """
    B, T = fresh_BTKH.shape[:2]
    if len(cache_BCKH) < B or start_pos + T > cache_BCKH.shape[1]:
        raise ValueError(
            f"the cache holds {len(cache_BCKH)} sequences of {cache_BCKH.shape[1]} tokens; "
            f"{B} of {start_pos + T} were given"
        )
    cache_BCKH[:B, start_pos : start_pos + T] = fresh_BTKH.detach()
    return torch.cat([cache_BCKH[:B, :start_pos], fresh_BTKH], dim=1)
