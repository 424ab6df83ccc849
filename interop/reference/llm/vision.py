"""Image encoder of `LLM` and its adapter, the same as Llama 4's (`interop.md` 4.10).

Letters in this file: P patches of an image plus the class token, C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from jaxllm.interop.reference.attention import scaled_dot_product_attention
from jaxllm.interop.reference.positions import apply_rope, frequencies, rotations

from .arguments import Size, VisionArgs


def axial_rotations(columns: int, rows: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Returns the rotations of patches by column (first half of the pairs) and row (second half).

    Patches are in row-major order, with columns and rows counted from 1. The class token, which
    comes last, is not rotated. The result is (P, H/2), complex.
    """
    patch = torch.arange(rows * columns)
    freqs = frequencies(head_dim // 2, 10000.0, dtype)
    across = torch.outer((patch % columns + 1).to(dtype), freqs)
    down = torch.outer((patch // columns + 1).to(dtype), freqs)
    angles = torch.cat([across, down], dim=-1)
    return rotations(torch.cat([angles, torch.zeros_like(angles[:1])]))


class PatchEmbedding(nn.Module):
    """Linear projection of patches in row-major order: BCHW to BPD."""

    def __init__(self, patch_size: Size, dim: int):
        super().__init__()
        self.patch = (patch_size.height, patch_size.width)
        self._linear = nn.Linear(3 * patch_size.height * patch_size.width, dim, bias=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns the output, BPD; a patch's values are ordered by channel, row, column."""
        patches_BPX = functional.unfold(images_BCHW, self.patch, stride=self.patch).mT
        return self._linear(patches_BPX)


class VisionAttention(nn.Module):
    """Attention among all patches, without a mask."""

    def __init__(self, dim: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.wq = nn.Linear(dim, dim)
        self.wk = nn.Linear(dim, dim)
        self.wv = nn.Linear(dim, dim)
        self.wo = nn.Linear(dim, dim)

    def forward(self, x_BPD: Tensor, freqs_cis: Tensor) -> Tensor:
        """Returns the output, BPD."""
        q_BPNH = self.wq(x_BPD).unflatten(-1, (self.n_heads, -1))
        k_BPNH = self.wk(x_BPD).unflatten(-1, (self.n_heads, -1))
        v_BPNH = self.wv(x_BPD).unflatten(-1, (self.n_heads, -1))
        q_BPNH, k_BPNH = apply_rope(q_BPNH, k_BPNH, freqs_cis)
        return self.wo(scaled_dot_product_attention(q_BPNH, k_BPNH, v_BPNH).flatten(-2))


class VisionMLP(nn.Module):
    """MLP: `c_proj(gelu(c_fc x))`."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.c_fc = nn.Linear(dim, hidden_dim)
        self.c_proj = nn.Linear(hidden_dim, dim)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """Returns the output, BPD."""
        return self.c_proj(functional.gelu(self.c_fc(x_BPD)))


class VisionBlock(nn.Module):
    """Pre-norm block: `h = x + attn(norm(x)); h + mlp(norm(h))`."""

    def __init__(self, args: VisionArgs):
        super().__init__()
        self.attn = VisionAttention(args.dim, args.n_heads)
        self.ln_1 = nn.LayerNorm(args.dim)
        self.mlp = VisionMLP(args.dim, int(args.mlp_ratio * args.dim))
        self.ln_2 = nn.LayerNorm(args.dim)

    def forward(self, x_BPD: Tensor, freqs_cis: Tensor) -> Tensor:
        """Returns the output, BPD."""
        h_BPD = x_BPD + self.attn(self.ln_1(x_BPD), freqs_cis)
        return h_BPD + self.mlp(self.ln_2(h_BPD))


class VisionTransformer(nn.Module):
    """Stack of vision blocks."""

    def __init__(self, args: VisionArgs):
        super().__init__()
        self.resblocks = nn.ModuleList(VisionBlock(args) for _ in range(args.n_layers))

    def forward(self, x_BPD: Tensor, freqs_cis: Tensor) -> Tensor:
        """Returns the output, BPD."""
        for block in self.resblocks:
            x_BPD = block(x_BPD, freqs_cis)
        return x_BPD


class VisionEncoder(nn.Module):
    """Encodes images to one vector per patch; the class token is appended and finally removed."""

    def __init__(self, args: VisionArgs):
        super().__init__()
        self.rows = args.image_size.height // args.patch_size.height
        self.columns = args.image_size.width // args.patch_size.width
        self.head_dim = args.dim // args.n_heads
        scale, num_tokens = args.dim**-0.5, self.rows * self.columns + 1
        self.conv1 = PatchEmbedding(args.patch_size, args.dim)
        self.class_embedding = nn.Parameter(scale * torch.randn(args.dim))
        self.positional_embedding_vlm = nn.Parameter(scale * torch.randn(num_tokens, args.dim))
        self.ln_pre = nn.LayerNorm(args.dim)
        self.transformer = VisionTransformer(args)
        self.ln_post = nn.LayerNorm(args.dim)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns the output, BPD, without the class token."""
        x_BPD = self.conv1(images_BCHW)
        x_BPD = torch.cat([x_BPD, self.class_embedding.expand(len(x_BPD), 1, -1)], dim=1)
        x_BPD = self.ln_pre(x_BPD + self.positional_embedding_vlm)
        dtype = torch.promote_types(x_BPD.dtype, torch.float32)
        freqs_cis = axial_rotations(self.columns, self.rows, self.head_dim, dtype)
        x_BPD = self.ln_post(self.transformer(x_BPD, freqs_cis))
        return x_BPD[:, :-1]


def pixel_shuffle(x_BPD: Tensor, rows: int, columns: int, ratio: float) -> Tensor:
    """Merges neighboring patches into fewer, wider ones: (B, P ratio^2, D / ratio^2).

    With ratio 1/2, each square of four neighbors becomes one patch, concatenated left before right
    and the upper row before the lower.
    """
    x = x_BPD.unflatten(1, (rows, columns))
    x = x.reshape(len(x), rows, int(columns * ratio), -1).transpose(1, 2)
    x = x.reshape(len(x), int(columns * ratio), int(rows * ratio), -1).transpose(1, 2)
    return x.flatten(1, 2)


class AdapterMLP(nn.Module):
    """MLP without biases: `gelu(c_proj(gelu(c_fc x)))`."""

    def __init__(self, dim: int, output_dim: int):
        super().__init__()
        self.c_fc = nn.Linear(dim, output_dim, bias=False)
        self.c_proj = nn.Linear(output_dim, output_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output, (B, P, output_dim)."""
        return functional.gelu(self.c_proj(functional.gelu(self.c_fc(x))))


class VisionAdapter(nn.Module):
    """Pixel shuffle followed by an MLP."""

    def __init__(self, args: VisionArgs):
        super().__init__()
        self.ratio = args.pixel_shuffle_ratio
        self.mlp = AdapterMLP(int(args.dim // self.ratio**2), args.output_dim)

    def forward(self, x_BPD: Tensor, rows: int, columns: int) -> Tensor:
        """Returns the output, (B, P ratio^2, output_dim)."""
        return self.mlp(pixel_shuffle(x_BPD, rows, columns, self.ratio))


class VisionEmbeddings(nn.Module):
    """Places the embeddings of each sequence's images, in order, at its image tokens."""

    def __init__(self, args: VisionArgs):
        super().__init__()
        self.output_dim = args.output_dim
        self.vision_encoder = VisionEncoder(args)
        self.vision_adapter = VisionAdapter(args)

    def forward(self, image_batch: Sequence[Sequence[Tensor]], mask_BT1: Tensor) -> Tensor:
        """Returns the embeddings at masked tokens, zero elsewhere: (B, T, output_dim).

        Args:
            image_batch: the images of each sequence, each (tiles, C, H, W).
            mask_BT1: True at image tokens.

        Raises:
            ValueError: a sequence has more image tokens than its images have embeddings.
        """
        pairs = zip(image_batch, mask_BT1.squeeze(-1), strict=True)
        return torch.stack([self.place(images, slots_T) for images, slots_T in pairs])

    def place(self, images: Sequence[Tensor], slots_T: Tensor) -> Tensor:
        """Places the embeddings of one sequence: (T, output_dim)."""
        encoder = self.vision_encoder
        out = encoder.class_embedding.new_zeros(len(slots_T), self.output_dim)
        if not images:
            rows = out[:0]
        else:
            patches_BPD = encoder(torch.cat(list(images)))
            rows = self.vision_adapter(patches_BPD, encoder.rows, encoder.columns).flatten(0, 1)
        if (needed := int(slots_T.sum())) > len(rows):
            raise ValueError(f"{needed} image tokens, but only {len(rows)} image embeddings")
        out[slots_T] = rows[:needed]
        return out
