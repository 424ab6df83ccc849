"""Table of codecs: how quantized storage is recognized in a config, and decoded."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.interop.formats.stored_tensor import CheckpointError, StoredTensor

from . import bitsandbytes, compressed_tensors, float8, mxfp4
from .decoded_tensor import DecodedTensor
from .grouped_integers import decode_awq, decode_gptq

CONFIG, METHOD = "quantization_config", "quant_method"
OLDER_CONFIG = "compression_config"  # of compressed-tensors
DTYPES = ("dtype", "torch_dtype")
BFLOAT16 = np.dtype("bfloat16")
DECODED = ("bfloat16", "float16", "float32")  # what the config may say that models compute in

Decode = Callable[
    [Mapping[str, StoredTensor], Mapping[str, Any], np.dtype, list[str]], dict[str, StoredTensor]
]

# By `quant_method`.
CODECS: Mapping[str, Decode] = {
    "fp8": float8.decode,
    "fbgemm_fp8": partial(float8.decode, suffix="_scale"),
    "mxfp4": mxfp4.decode,
    "gptq": decode_gptq,
    "awq": decode_awq,
    "bitsandbytes": bitsandbytes.decode,
    "compressed-tensors": compressed_tensors.decode,
}

logger = logging.getLogger(__name__)


def take_settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Returns a model's config without what it says on quantized storage, and that, or None."""
    plain = {k: v for k, v in config.items() if k not in (CONFIG, OLDER_CONFIG)}
    settings = config.get(CONFIG) or config.get(OLDER_CONFIG)
    if settings and not isinstance(settings, Mapping):
        return plain, {METHOD: repr(settings)}  # no method, and so refused
    return plain, settings or None


def decode_tensors(
    tensors: Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Mapping[str, StoredTensor]:
    """Returns the tensors of a checkpoint, those in quantized storage to be decoded when read.

    Args:
        tensors: its tensors by name.
        config: its config, whose dtype is that of the decoded tensors.
        settings: what the config says on the storage.

    Raises:
        CheckpointError: the storage is not known, or tensors do not fit it. Lists every problem.
    """
    method = settings.get(METHOD)
    decode = CODECS.get(str(method))
    if decode is None:
        raise CheckpointError(
            f"{CONFIG}.{METHOD}={method!r} is not supported, only {', '.join(CODECS)}: "
            "dequantize the model with the library that quantized it"
        )
    problems: list[str] = []
    found = decode(tensors, settings, _dtype_of(config), problems)
    if problems:
        raise CheckpointError(problems)
    return found


def describe_storage(tensors: Mapping[str, StoredTensor]) -> str:
    """Says which tensors are decoded from what, and what follows; "" if none is."""
    decoded = [tensor for tensor in tensors.values() if isinstance(tensor, DecodedTensor)]
    if not decoded:
        return ""
    kinds = ", ".join(dict.fromkeys(tensor.storage for tensor in decoded))
    return (
        f"{len(decoded)} of {len(tensors)} tensors are stored as {kinds} and decoded to "
        f"{decoded[0].dtype.name}: an export has the decoded numbers, not the bits of these files"
    )


def warn_of_storage(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Logs a warning if tensors are decoded, as their export is then not of the same bits."""
    if storage := describe_storage(tensors):
        logger.warning("%s: %s", path, storage)


def _dtype_of(config: Mapping[str, Any]) -> np.dtype:
    given = next((config[name] for name in DTYPES if config.get(name)), BFLOAT16.name)
    name = str(given).removeprefix("torch.")
    return np.dtype(name) if name in DECODED else BFLOAT16
