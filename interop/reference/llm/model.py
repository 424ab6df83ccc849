"""`LLM(ModelArgs)`, after `llm_overview.md` and `llm_model_and_layers.md`; covers Llama 3 and 4."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from jaxllm.interop.reference.attention import create_causal_mask
from jaxllm.interop.reference.fields import as_fields
from jaxllm.interop.reference.norm import RMSNorm
from jaxllm.interop.reference.precision import at_least_float32

from .arguments import ModelArgs
from .checkpoint import drop_derived, rename
from .layers import Attention, FeedForward, create_chunked_attention_mask, precompute_freqs_cis
from .moe import MoE
from .vision import VisionEmbeddings


@dataclasses.dataclass(frozen=True)
class MaskedEmbedding:
    """Image embeddings from `VisionEmbeddings`, and the tokens that they replace."""

    embedding: Tensor  # (B, T, output_dim)
    mask: Tensor  # BT1, bool


@dataclasses.dataclass(frozen=True)
class TransformerInput:
    """Input of a forward pass."""

    tokens: Tensor  # BT
    tokens_position: int  # position of the first token, for all sequences
    image_embedding: MaskedEmbedding | None = None


@dataclasses.dataclass(frozen=True)
class TransformerOutput:
    """Output of a forward pass."""

    logits: Tensor  # BTV, at least float32


class TransformerBlock(nn.Module):
    """Pre-norm block: `h = x + attention(norm(x)); h + feed_forward(norm(h))`.

    Every `nope_layer_interval`-th layer has no positions and full causal attention; the others have
    RoPE, normalized queries and keys, and chunked attention. Every `interleave_moe_layer_step`-th
    layer has experts.
    """

    def __init__(self, layer_id: int, args: ModelArgs):
        super().__init__()
        interval, moe = args.nope_layer_interval, args.moe_args
        self.is_nope_layer = interval is not None and (layer_id + 1) % interval == 0
        self.attention = Attention(
            args,
            use_qk_norm=args.use_qk_norm and not self.is_nope_layer,
            use_rope=not self.is_nope_layer,
        )
        self.feed_forward: nn.Module
        if moe is not None and (layer_id + 1) % moe.interleave_moe_layer_step == 0:
            hidden_dim = int(args.ffn_exp * args.dim)
            self.feed_forward = MoE(
                args.dim, hidden_dim, args.ffn_dim_multiplier, args.multiple_of, moe
            )
        else:
            self.feed_forward = FeedForward(
                args.dim, 4 * args.dim, args.multiple_of, args.ffn_dim_multiplier
            )
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)
        self.register_load_state_dict_pre_hook(TransformerBlock.load_hook)

    def load_hook(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Renames norms that are stored with the projection that they precede."""
        attention = ("attention.wqkv.layer_norm_weight", "attention.norm.weight")
        ffn = ("feed_forward.mlp.layer_norm_weight", "feed_forward.norm.weight")
        rename(state_dict, prefix, dict.fromkeys(attention, "attention_norm.weight"))
        rename(state_dict, prefix, dict.fromkeys(ffn, "ffn_norm.weight"))
        drop_derived(state_dict, prefix)

    def forward(
        self,
        x_BTD: Tensor,
        start_pos: int,
        freqs_cis: Tensor,
        global_attn_mask_TS: Tensor,
        local_attn_mask_TS: Tensor | None,
    ) -> Tensor:
        """Returns the output, BTD."""
        is_global = self.is_nope_layer or local_attn_mask_TS is None
        mask_TS = global_attn_mask_TS if is_global else local_attn_mask_TS
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), start_pos, freqs_cis, mask_TS)
        return h_BTD + self.feed_forward(self.ffn_norm(h_BTD))


class LLM(nn.Module):
    """Decoder: tokens, and optionally images among them, to logits.

    Every pass writes the caches. A pass at position 0 starts a new sequence; a pass at position p
    continues it and computes the same as a single pass over all tokens would, chunks included.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.fields = as_fields("llm", args)
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(TransformerBlock(i, args) for i in range(args.n_layers))
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)
        if args.vision_args is not None:
            self.vision_embeddings = VisionEmbeddings(args.vision_args)
            self.vision_projection = nn.Linear(args.vision_args.output_dim, args.dim, bias=False)
        self.register_load_state_dict_pre_hook(LLM.load_hook)

    def load_hook(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        """Renames the head from Hugging Face's name; drops the frequencies of older checkpoints."""
        rename(state_dict, prefix, {"lm_head.weight": "output.weight"})
        drop_derived(state_dict, prefix)

    def forward(self, model_input: TransformerInput, inference: bool = False) -> TransformerOutput:
        """Returns the logits, without gradients if `inference`.

        Raises ValueError if the cache is full.
        """
        with torch.inference_mode(inference):
            return self._forward(model_input)

    def _forward(self, model_input: TransformerInput) -> TransformerOutput:
        start_pos, T = model_input.tokens_position, model_input.tokens.shape[1]
        h_BTD = self.tok_embeddings(model_input.tokens)
        if (image := model_input.image_embedding) is not None:
            h_image_BTD = self.vision_projection(image.embedding)
            h_BTD = torch.where(image.mask, h_image_BTD, h_BTD)
        dtype = torch.promote_types(h_BTD.dtype, torch.float32)
        freqs_cis = self.freqs_cis(start_pos + T, dtype)[start_pos:]
        global_attn_mask_TS = create_causal_mask(T, start_pos + T)
        local_attn_mask_TS = None
        if (chunk_size := self.args.attention_chunk_size) is not None:
            mask_SS = create_chunked_attention_mask(start_pos + T, chunk_size)
            local_attn_mask_TS = mask_SS[start_pos:]
        for layer in self.layers:
            h_BTD = layer(h_BTD, start_pos, freqs_cis, global_attn_mask_TS, local_attn_mask_TS)
        return TransformerOutput(at_least_float32(self.output(self.norm(h_BTD))))

    def freqs_cis(self, end: int, dtype: torch.dtype) -> Tensor:
        """Returns the rotation of each pair at positions below `end`: (end, H/2), complex."""
        args = self.args
        return precompute_freqs_cis(
            args.dim // args.n_heads,
            end,
            args.rope_theta,
            args.use_scaled_rope,
            args.rope_scaling_factor,
            args.rope_high_freq_factor,
            dtype,
        )
