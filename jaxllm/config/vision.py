"""The encoder of images."""

import dataclasses
from typing import ClassVar

from .checks import check_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """An encoder of square images, whose outputs stand in for embeddings of tokens (Llama 4)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    image_size: int  # pixels of a side
    patch_size: int
    num_channels: int = 3
    embed_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    output_dim: int
    shuffle: int = 2  # patches of a side that become one embedding
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    image_token: int | None = None  # the token that holds the place of an embedding

    @property
    def num_patches(self) -> int:
        """The number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    def __post_init__(self) -> None:
        names = {field.name for field in dataclasses.fields(self)} - {"image_token"}
        check_positive(self, *sorted(names), prefix="vision.")
        if self.image_size % (self.patch_size * self.shuffle):
            raise ValueError(
                f"vision.image_size={self.image_size} is not a multiple of "
                f"patch_size={self.patch_size} times shuffle={self.shuffle}"
            )
        if self.embed_dim % (4 * self.num_heads):  # a column and a row rotate pairs of each head
            raise ValueError(
                f"vision.embed_dim={self.embed_dim} is not num_heads={self.num_heads} heads of a "
                "multiple of 4"
            )
