"""Image encoder, whose outputs replace the embeddings of image tokens (Llama 4)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxllm.config import (
    AttentionConfig,
    DecoderConfig,
    MlpConfig,
    NormConfig,
    PositionConfig,
    StackConfig,
    VisionConfig,
)
from jaxllm.sharding import constrain

from .attention.attention import self_attention
from .attention.mask import MaskSpec
from .attention.rope import Rotation, apply_rope, rope_frequencies
from .linear import Linear, PositionTable
from .mlp import MLP, activate
from .norm import Norm
from .stack import apply_layers, make_layers


class MaskedEmbedding(NamedTuple):
    """Image embeddings at the positions of the image tokens that they replace."""

    embedding_BTF: Array  # F is the encoder's output_dim; zeros where the mask is False
    mask_BT: Array  # True at image tokens


class VisionEncoder(nnx.Module):
    """A transformer over an image's patches, and an adapter that merges and widens them."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        vision, tower = config.vision, tower_config(config)
        assert vision is not None, "checked by the caller"
        D, F = vision.embed_dim, vision.output_dim
        linear = partial(Linear, config=tower, rngs=rngs)
        self.vision, self.remat = vision, config.remat
        self.patch_embed = linear("BTC,CD->BTD", (vision.num_channels * vision.patch_size**2, D))
        drawn = config.init.std * rngs.params.normal((D,), config.numerics.param_dtype)
        self.class_embedding = nnx.Param(drawn, dims="D")
        self.embed_position = PositionTable(tower, rngs=rngs)
        self.first_norm, self.final_norm = Norm("D", (D,), tower), Norm("D", (D,), tower)

        def make(_: None, key: Array) -> VisionBlock:
            return VisionBlock(tower, rngs=nnx.Rngs(params=key))

        self.kinds = (None,) * vision.num_layers  # all of the same kind
        self.layers = make_layers(make, self.kinds, config.scan_layers, rngs.params())
        self.adapter_in = linear("BTD,DF->BTF", (D * vision.shuffle**2, F))
        self.adapter_out = linear("BTF,FD->BTD", (F, F))

    def __call__(self, images_BCHW: Array) -> Array:
        """Encodes images into embeddings, BTF, in row-major order.

        Raises ValueError if the images do not have the config's channels and size.
        """
        vision, dtype = self.vision, self.patch_embed.dtype
        expected = (vision.num_channels, vision.image_size, vision.image_size)
        if images_BCHW.shape[1:] != expected:
            raise ValueError(
                f"images have shape {images_BCHW.shape[1:]}, not {expected} (channels, height, "
                "width)"
            )
        x_BTD = self.patch_embed(split_patches(images_BCHW.astype(dtype), vision.patch_size))
        last_BTD = jnp.broadcast_to(self.class_embedding[...].astype(dtype), x_BTD[:, :1].shape)
        x_BTD = jnp.concatenate([x_BTD, last_BTD], axis=1)
        x_BTD = self.first_norm(x_BTD + self.embed_position(jnp.arange(x_BTD.shape[1])[None]))
        x_BTD, _, _ = apply_layers(
            self.layers,
            lambda block, x, _: (block(x, vision), None, None),
            constrain(x_BTD, "BTD"),
            None,
            self.remat,
            dtype,
        )
        x_BTD = shuffle_pixels(self.final_norm(x_BTD)[:, :-1], vision.shuffle)
        h_BTF = constrain(activate("gelu", self.adapter_in(x_BTD)), "BTF")
        return activate("gelu", self.adapter_out(h_BTF))


class VisionBlock(nnx.Module):
    """Pre-norm transformer block with bidirectional attention between all patches."""

    def __init__(self, tower: StackConfig, *, rngs: nnx.Rngs):
        D, N, H = tower.embed_dim, tower.num_heads, tower.head_dim
        linear = partial(Linear, config=tower, use_bias=True, rngs=rngs)
        self.attn_norm, self.mlp_norm = Norm("D", (D,), tower), Norm("D", (D,), tower)
        self.q_proj = linear("BTD,DNH->BTNH", (D, N, H))
        self.k_proj = linear("BTD,DNH->BTNH", (D, N, H))
        self.v_proj = linear("BTD,DNH->BTNH", (D, N, H))
        self.o_proj = linear("BTNH,NHD->BTD", (N, H, D))
        self.mlp = MLP(tower, rngs=rngs)

    def __call__(self, x_BTD: Array, vision: VisionConfig) -> Array:
        """Returns the residual stream after this block, BTD."""
        h_BTD = self.attn_norm(x_BTD)
        q_BTNH = constrain(rotate_patches(self.q_proj(h_BTD), vision), "BTNH")
        k_BTNH = constrain(rotate_patches(self.k_proj(h_BTD), vision), "BTNH")
        v_BTNH = constrain(self.v_proj(h_BTD), "BTNH")
        positions_BT = jnp.arange(x_BTD.shape[1])[None]
        mask_spec = MaskSpec(causal=False)
        out_BTNH = self_attention(q_BTNH, k_BTNH, v_BTNH, positions_BT, mask_spec=mask_spec)
        x_BTD = constrain(x_BTD + self.o_proj(out_BTNH), "BTD")
        return constrain(x_BTD + self.mlp(self.mlp_norm(x_BTD)), "BTD")


def tower_config(config: DecoderConfig) -> StackConfig:
    """Returns the config of the image encoder's stack of layers."""
    vision = config.vision
    assert vision is not None, "checked by the caller"
    return StackConfig(
        embed_dim=vision.embed_dim,
        num_layers=vision.num_layers,
        num_heads=vision.num_heads,
        num_kv_heads=vision.num_heads,
        head_dim=vision.embed_dim // vision.num_heads,
        mlp_dim=vision.mlp_dim,
        max_len=vision.num_patches + 1,
        norms=NormConfig(kind="layer", eps=vision.norm_eps),
        attention=AttentionConfig(causal=False),
        positions=PositionConfig(kind="learned"),
        mlp=MlpConfig(activation="gelu", gated=False, bias=True),
        init=config.init,
        numerics=config.numerics,
    )


def split_patches(images_BCHW: Array, size: int) -> Array:
    """Splits images into square patches, in row-major order: (B, T, C * size * size).

    The elements of a patch are ordered by channel, row and column.
    """
    B, C, height, width = images_BCHW.shape
    rows, columns = height // size, width // size
    x = images_BCHW.reshape(B, C, rows, size, columns, size)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, C * size * size)


def shuffle_pixels(x_BTD: Array, factor: int) -> Array:
    """Merges each square of `factor` by `factor` patches into one wider patch (pixel shuffle).

    Squares, and patches within a square, are in row-major order.
    """
    B, T, D = x_BTD.shape
    side = int(T**0.5) // factor
    x = x_BTD.reshape(B, side, factor, side, factor, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, side * side, factor * factor * D)


def rotate_patches(x_BTNH: Array, vision: VisionConfig) -> Array:
    """Applies 2D RoPE: a patch's column rotates the first half of a head, its row the second.

    Pairs are adjacent elements. Columns and rows count from one; the class token, which is last,
    is not rotated.
    """
    half, side = x_BTNH.shape[-1] // 2, vision.image_size // vision.patch_size
    rotation = Rotation(rope_frequencies(half, vision.rope_theta, None), "interleaved")
    patch = np.arange(side * side)
    columns, rows = (np.append(count + 1, 0)[None] for count in (patch % side, patch // side))
    across = apply_rope(x_BTNH[..., :half], jnp.asarray(columns), rotation)
    down = apply_rope(x_BTNH[..., half:], jnp.asarray(rows), rotation)
    return jnp.concatenate([across, down], axis=-1)


def scatter_rows(rows_RF: Array, mask_BT: Array) -> MaskedEmbedding:
    """Places rows, in order, where the mask is True, and zeros elsewhere.

    Raises ValueError unless there are as many rows as True elements. A traced mask cannot be
    counted; there, True elements without a row get NaN.
    """
    R = rows_RF.shape[0]
    if not isinstance(mask_BT, jax.core.Tracer) and (places := int(np.sum(mask_BT))) != R:
        raise ValueError(
            f"{R} embeddings of images for {places} image tokens: give one token per embedding"
        )
    order_BT = jnp.cumsum(mask_BT.reshape(-1)).reshape(mask_BT.shape) - 1
    given_BTF = jnp.take(rows_RF, order_BT, axis=0, mode="fill", fill_value=jnp.nan)
    return MaskedEmbedding(jnp.where(mask_BT[..., None], given_BTF, 0), mask_BT)
