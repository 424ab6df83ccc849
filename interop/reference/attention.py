"""Scaled dot-product attention, the causal mask, and the key/value cache."""

import torch
from torch import Tensor, nn

from .precision import at_least_float32

HIDDEN = -1e9  # masked score: its weight is exactly zero, unless every key is masked


def scaled_dot_product_attention(
    q_BTNH: Tensor,
    k_BSNH: Tensor,
    v_BSNH: Tensor,
    mask: Tensor | None = None,
    bias_NTS: Tensor | None = None,
) -> Tensor:
    """Computes `softmax(q k / sqrt(H) + bias) v` over the unmasked keys.

    Args:
        q_BTNH: queries.
        k_BSNH: keys.
        v_BSNH: values.
        mask: TS or BTS, True where a query may attend.
        bias_NTS: added to the scaled scores.

    Returns:
        BTNH. A query whose keys are all masked gets the mean of the values.
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
    """Attention whose key/value heads each serve `n_rep` query heads.

    Without parameters; a module only so that its inputs and outputs can be recorded with hooks.
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
        """As `scaled_dot_product_attention`, after repeating key/value heads: BTNH."""
        k_BSNH, v_BSNH = repeat_kv(k_BSKH, self.n_rep), repeat_kv(v_BSKH, self.n_rep)
        return scaled_dot_product_attention(q_BTNH, k_BSNH, v_BSNH, mask, bias_NTS)


def create_causal_mask(num_queries: int, num_keys: int | None = None) -> Tensor:
    """Returns the causal mask, TS, of queries at the last T of S positions."""
    num_keys = num_queries if num_keys is None else num_keys
    return torch.ones(num_keys, num_keys, dtype=torch.bool).tril()[num_keys - num_queries :]


def repeat_kv(kv_BSKH: Tensor, n_rep: int) -> Tensor:
    """Repeats each key/value head for `n_rep` consecutive query heads: BSNH."""
    return kv_BSKH.repeat_interleave(n_rep, dim=2)


def extend_cache(cache_BCKH: Tensor, start_pos: int, fresh_BTKH: Tensor) -> Tensor:
    """Writes new keys or values to the cache and returns all so far: BSKH with S = start_pos + T.

    Gradients flow through the new entries and stop at the cached ones.

    Args:
        cache_BCKH: the cache, updated in place.
        start_pos: the position of the first new token.
        fresh_BTKH: the new keys or values.

    Raises:
        ValueError: the cache is too small.
    """
    B, T = fresh_BTKH.shape[:2]
    if len(cache_BCKH) < B or start_pos + T > cache_BCKH.shape[1]:
        raise ValueError(
            f"the cache holds {len(cache_BCKH)} sequences of {cache_BCKH.shape[1]} tokens, "
            f"but {B} sequences of {start_pos + T} tokens were given"
        )
    cache_BCKH[:B, start_pos : start_pos + T] = fresh_BTKH.detach()
    return torch.cat([cache_BCKH[:B, :start_pos], fresh_BTKH], dim=1)
