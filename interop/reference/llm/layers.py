"""Attention and feed-forward of `LLM`, after `llm_model_and_layers.md` and Llama 4's formulas."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxllm.interop.reference.attention import Attend, extend_cache
from jaxllm.interop.reference.norm import rmsnorm
from jaxllm.interop.reference.positions import apply_rope, frequencies, rotations
from jaxllm.interop.reference.precision import at_least_float32

from .arguments import ModelArgs
from .checkpoint import rename, split

LOW_FREQ_FACTOR = 1
OLD_CONTEXT_LEN = 8192


def apply_scaling(freqs: Tensor, scale_factor: float, high_freq_factor: float) -> Tensor:
    """Scales RoPE frequencies for longer contexts (Llama 3.1).

    Frequencies with less than one turn in the old context are divided by the factor, those with
    more than `high_freq_factor` turns are kept, and those in between are blended.
    """
    turns = OLD_CONTEXT_LEN * freqs / (2 * math.pi)
    if high_freq_factor == LOW_FREQ_FACTOR:  # Llama 4 Scout: nothing in between
        return torch.where(turns > LOW_FREQ_FACTOR, freqs, freqs / scale_factor)
    blend = (turns - LOW_FREQ_FACTOR) / (high_freq_factor - LOW_FREQ_FACTOR)
    blend = blend.clamp(0, 1)
    return (1 - blend) * freqs / scale_factor + blend * freqs


def precompute_freqs_cis(
    dim: int,
    end: int,
    theta: float,
    use_scaled: bool,
    scale_factor: float,
    high_freq_factor: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the rotation of each pair at positions below `end`: (end, dim / 2), complex."""
    freqs = frequencies(dim, theta, dtype)
    if use_scaled:
        freqs = apply_scaling(freqs, scale_factor, high_freq_factor)
    return rotations(torch.outer(torch.arange(end, dtype=dtype), freqs))


def create_chunked_attention_mask(seq_len: int, attention_chunk_size: int) -> Tensor:
    """Returns a causal mask within chunks, TS with T = S, True where a token may attend."""
    positions = torch.arange(seq_len)
    chunks = positions // attention_chunk_size
    return (chunks[:, None] == chunks) & (positions[:, None] >= positions)


class Attention(nn.Module):
    """Grouped-query attention with a cache, and either RoPE or an optional temperature."""

    cache_k: Tensor
    cache_v: Tensor

    def __init__(self, args: ModelArgs, use_qk_norm: bool, use_rope: bool, add_bias: bool = False):
        super().__init__()
        D, N, K, H = args.dim, args.n_heads, args.num_kv_heads, args.dim // args.n_heads
        self.args = args
        self.use_rope = use_rope
        self.use_qk_norm = use_qk_norm
        self.head_dim = H
        self.attend = Attend(N // K)
        self.wq = nn.Linear(D, N * H, bias=add_bias)
        self.wk = nn.Linear(D, K * H, bias=add_bias)
        self.wv = nn.Linear(D, K * H, bias=add_bias)
        self.wo = nn.Linear(N * H, D, bias=add_bias)
        empty_BCKH = torch.zeros(args.batch_size, args.max_seq_len, K, H)
        self.register_buffer("cache_k", empty_BCKH, persistent=False)
        self.register_buffer("cache_v", empty_BCKH.clone(), persistent=False)
        self.register_load_state_dict_pre_hook(Attention.load_hook)

    def load_hook(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Splits a fused `wqkv`: rows of queries, then keys, then values."""
        rows = {f"{name}.weight": getattr(self, name).out_features for name in ("wq", "wk", "wv")}
        split(state_dict, prefix, "wqkv.weight", rows)

    def forward(
        self, x_BTD: Tensor, start_pos: int, freqs_cis: Tensor, mask_TS: Tensor | None = None
    ) -> Tensor:
        """Returns the attention output, BTD; S is `start_pos + T`."""
        q_BTNH = self.wq(x_BTD).unflatten(-1, (-1, self.head_dim))
        k_BTKH = self.wk(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BTKH = self.wv(x_BTD).unflatten(-1, (-1, self.head_dim))
        if self.use_rope:
            q_BTNH, k_BTKH = apply_rope(q_BTNH, k_BTKH, freqs_cis)
        if self.use_qk_norm:
            q_BTNH, k_BTKH = (rmsnorm(x, self.args.norm_eps) for x in (q_BTNH, k_BTKH))
        if self.args.attn_temperature_tuning and not self.use_rope:
            q_BTNH = self.tempered(q_BTNH, start_pos)
        k_BSKH = extend_cache(self.cache_k, start_pos, k_BTKH)
        v_BSKH = extend_cache(self.cache_v, start_pos, v_BTKH)
        out_BTNH = self.attend(q_BTNH, k_BSKH, v_BSKH, mask_TS)
        return self.wo(out_BTNH.flatten(-2))

    def tempered(self, q_BTNH: Tensor, start_pos: int) -> Tensor:
        """Scales queries with the logarithm of their position (arXiv:2501.19399)."""
        wide = at_least_float32(q_BTNH)
        positions = torch.arange(start_pos, start_pos + wide.shape[1], dtype=wide.dtype)
        periods = torch.floor((positions + 1) / self.args.floor_scale)
        scales = 1 + self.args.attn_scale * torch.log(periods + 1)
        return (wide * scales[:, None, None]).to(q_BTNH.dtype)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020): `w_out(silu(w_gate x) * w_value x)`.

    The width is 2/3 of `hidden_dim`, times the multiplier, rounded up to `multiple_of`.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        multiple_of: int,
        ffn_dim_multiplier: float | None = None,
        bias: bool = False,
    ):
        super().__init__()
        hidden_dim = int(2 * hidden_dim / 3)
        if ffn_dim_multiplier is not None:
            hidden_dim = int(ffn_dim_multiplier * hidden_dim)
        hidden_dim += -hidden_dim % multiple_of
        self.w_gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.w_value = nn.Linear(dim, hidden_dim, bias=bias)
        self.w_out = nn.Linear(hidden_dim, dim, bias=bias)
        self.register_load_state_dict_pre_hook(FeedForward.load_hook)

    def load_hook(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Splits a fused `fc1` into gates and values; renames Meta's `w1`, `w2` and `w3`."""
        rows = {f"{name}.weight": self.w_gate.out_features for name in ("w_gate", "w_value")}
        split(state_dict, prefix, "mlp.fc1_weight", rows)
        rename(state_dict, prefix, {"mlp.fc2_weight": "w_out.weight"})
        meta = {"w1": "w_gate", "w3": "w_value", "w2": "w_out"}
        rename(state_dict, prefix, {f"{a}.weight": f"{b}.weight" for a, b in meta.items()})

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the output, BTD."""
        return self.w_out(functional.silu(self.w_gate(x_BTD)) * self.w_value(x_BTD))
