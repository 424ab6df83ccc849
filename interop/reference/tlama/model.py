"""tlama-core's `Transformer(TlamaConfig)`, after `tlama_core.md`."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxllm.interop.reference.attention import Attend, create_causal_mask, extend_cache
from jaxllm.interop.reference.fields import as_fields
from jaxllm.interop.reference.norm import RMSNorm
from jaxllm.interop.reference.positions import apply_rope, compute_freqs_cis


@dataclasses.dataclass(frozen=True, kw_only=True)
class TlamaConfig:
    """Sizes of a model. Raises ValueError if they are inconsistent."""

    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None  # None: n_heads
    vocab_size: int = 128000
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    max_batch_size: int = 32
    max_seq_len: int = 2048
    use_parallel: bool = False  # fairscale's layers, which compute the same
    kv_cache: bool = False
    weight_init: tuple[float, float] = (0.02, 0.0)  # standard deviation and mean

    def __post_init__(self) -> None:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model={self.d_model} does not split into n_heads={self.n_heads} heads of even "
                "width"
            )
        if self.n_heads % self.num_kv_heads:
            raise ValueError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}"
            )

    @property
    def num_kv_heads(self) -> int:
        """The number of key/value heads, K."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_dim(self) -> int:
        """The width of a head, H."""
        return self.d_model // self.n_heads


class Attention(nn.Module):
    """Grouped-query attention with RoPE and, if `kv_cache` is set, a cache."""

    cache_k: Tensor
    cache_v: Tensor

    def __init__(self, config: TlamaConfig):
        super().__init__()
        D, N, K, H = config.d_model, config.n_heads, config.num_kv_heads, config.head_dim
        self.head_dim = H
        self.attend = Attend(N // K)
        self.kv_cache = config.kv_cache
        self.Wq = nn.Linear(D, N * H, bias=False)
        self.Wk = nn.Linear(D, K * H, bias=False)
        self.Wv = nn.Linear(D, K * H, bias=False)
        self.Wo = nn.Linear(N * H, D, bias=False)
        if config.kv_cache:
            empty_BCKH = torch.zeros(config.max_batch_size, config.max_seq_len, K, H)
            self.register_buffer("cache_k", empty_BCKH, persistent=False)
            self.register_buffer("cache_v", empty_BCKH.clone(), persistent=False)

    def forward(
        self, x_BTD: Tensor, start_pos: int, freq_cis: Tensor, mask_TS: Tensor | None
    ) -> Tensor:
        """Returns the attention output, BTD. S is T, or `start_pos + T` with a cache."""
        q_BTNH = self.Wq(x_BTD).unflatten(-1, (-1, self.head_dim))
        k_BSKH = self.Wk(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BSKH = self.Wv(x_BTD).unflatten(-1, (-1, self.head_dim))
        q_BTNH, k_BSKH = apply_rope(q_BTNH, k_BSKH, freq_cis)
        if self.kv_cache:
            k_BSKH = extend_cache(self.cache_k, start_pos, k_BSKH)
            v_BSKH = extend_cache(self.cache_v, start_pos, v_BSKH)
        out_BTNH = self.attend(q_BTNH, k_BSKH, v_BSKH, mask_TS)
        return self.Wo(out_BTNH.flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020): `w2(silu(w1 x) * w3 x)`.

    The width is `hidden_dim` times the multiplier, or times 2/3 if there is none, rounded up to
    `multiple_of`.
    """

    def __init__(
        self,
        d_model: int,
        hidden_dim: int,
        multiple_of: int,
        ffn_dim_multiplier: float | None = None,
    ):
        super().__init__()
        if ffn_dim_multiplier is None:
            hidden_dim = int(2 * hidden_dim / 3)
        else:
            hidden_dim = int(hidden_dim * ffn_dim_multiplier)
        hidden_dim += -hidden_dim % multiple_of
        self.w1 = nn.Linear(d_model, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, d_model, bias=False)
        self.w3 = nn.Linear(d_model, hidden_dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the output, BTD."""
        return self.w2(functional.silu(self.w1(x_BTD)) * self.w3(x_BTD))


class TransformerBlock(nn.Module):
    """Pre-norm block: `h = x + attention(norm(x)); h + ffn(norm(h))`."""

    def __init__(self, config: TlamaConfig):
        super().__init__()
        D = config.d_model
        self.attention = Attention(config)
        self.ffn = FeedForward(D, 4 * D, config.multiple_of, config.ffn_dim_multiplier)
        self.attention_norm = RMSNorm(D, config.norm_eps)
        self.ffn_norm = RMSNorm(D, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, start_pos: int, freq_cis: Tensor, mask_TS: Tensor | None
    ) -> Tensor:
        """Returns the output, BTD."""
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), start_pos, freq_cis, mask_TS)
        return h_BTD + self.ffn(self.ffn_norm(h_BTD))


class Transformer(nn.Module):
    """Decoder: tokens to logits and, given targets that are already shifted, the loss."""

    def __init__(self, config: TlamaConfig):
        super().__init__()
        self.config = config
        self.fields = as_fields("tlama", config)
        self.token_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_buffer(
            "freq_cis",
            compute_freqs_cis(config.head_dim, 2 * config.max_seq_len, config.rope_theta),
        )
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            std, mean = self.config.weight_init
            nn.init.normal_(module.weight, mean, std)

    def forward(
        self, tokens_BT: Tensor, start_pos: int = 0, targets_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the logits, BTV, and the mean cross-entropy of the targets, or None without any.

        Raises ValueError if `start_pos` is not 0 and there is no cache, or if a position is beyond
        the rotation buffer.
        """
        config, T = self.config, tokens_BT.shape[1]
        if start_pos and not config.kv_cache:
            raise ValueError(f"start_pos={start_pos} needs a cache, but kv_cache={config.kv_cache}")
        if start_pos + T > 2 * config.max_seq_len:
            raise ValueError(
                f"position {start_pos + T - 1} is beyond the {2 * config.max_seq_len} rotations, "
                "2 * max_seq_len"
            )
        h_BTD = self.token_emb(tokens_BT)
        dtype = torch.promote_types(h_BTD.dtype, torch.float32)
        freq_cis = compute_freqs_cis(config.head_dim, start_pos + T, config.rope_theta, dtype)
        mask_TS = create_causal_mask(T, start_pos + T)
        for layer in self.layers:
            h_BTD = layer(h_BTD, start_pos, freq_cis[start_pos:], mask_TS)
        logits_BTV = self.output(self.norm(h_BTD))
        if targets_BT is None:
            return logits_BTV, None
        return logits_BTV, functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    def configure_optimizers(self, weight_decay: float, learning_rate: float) -> torch.optim.AdamW:
        """Returns an AdamW that decays matrices and embeddings but not norms."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8)
