"""PyTorch reference of the components system: models over continuous inputs."""

from .models import AutoregressiveTransformerModel, EncoderDecoder, TransformerModel

__all__ = ["AutoregressiveTransformerModel", "EncoderDecoder", "TransformerModel"]
