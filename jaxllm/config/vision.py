"""Config of the image encoder."""

import dataclasses
from typing import ClassVar

from .checks import check_fields, check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """An encoder of square images, whose outputs replace embeddings of image tokens (Llama 4)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    image_size: int  # side of an image, in pixels
    patch_size: int  # side of a patch, in pixels
    num_channels: int = 3
    embed_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    output_dim: int
    shuffle: int = 2  # side, in patches, of the squares that are merged into one embedding
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    image_token: int | None = None  # placeholder token, one for each embedding of an image

    @property
    def num_patches(self) -> int:
        """The number of patches in an image."""
        return (self.image_size // self.patch_size) ** 2

    def __post_init__(self) -> None:
        check_fields(self, "vision.")
        names = {field.name for field in dataclasses.fields(self)} - {"image_token"}
        check_positive(self, *sorted(names), prefix="vision.")
        if self.image_size % (self.patch_size * self.shuffle):
            raise ValueError(
                f"vision.image_size={self.image_size} is not a multiple of "
                f"patch_size={self.patch_size} times shuffle={self.shuffle}"
            )
        if self.embed_dim % (4 * self.num_heads):  # half of a head's pairs are rotated by column
            raise ValueError(
                f"vision.embed_dim={self.embed_dim} is not a multiple of 4 times "
                f"num_heads={self.num_heads}"
            )
