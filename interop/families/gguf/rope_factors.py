"""RoPE scaling in GGUF files: fields, or tensors with a factor for each frequency."""

import math
from typing import Any

import numpy as np

from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats.gguf.quantized_tensor import QuantizedTensor

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
# Llama 3.1 and later were all released with these; the file has only what follows from them.
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
NO_SCALING = ("none", "")


def read_scaling(
    given: Json, tensors: dict[str, QuantizedTensor], config: Json, problems: list[str]
) -> Json:
    """Returns `rope_scaling` and what belongs to it, as fields of `config.json`.

    Args:
        given: fields of the file, without its architecture's name; loses those of RoPE scaling.
        tensors: its tensors by their names in it; loses those of RoPE scaling.
        config: the other fields of `config.json`.
        problems: gets what is not understood.
    """
    prefix = "rope.scaling."
    names = [name for name in given if name.startswith(prefix)]
    scaling = {name.removeprefix(prefix): given.pop(name) for name in names}
    scaling.pop("finetuned", None)  # whether the model was trained with it
    linear = given.pop("rope.scale_linear", 1.0)  # of old files
    kind = scaling.pop("type", "linear")  # the default of llama.cpp
    factor = scaling.pop("factor", linear)
    original = scaling.pop("original_context_length", None)
    long, short, factors = (tensors.pop(name, None) for name in (LONG, SHORT, FACTORS))
    found: Json = {}
    if long is not None and short is not None:
        rope = {"long_factor": _numbers(long), "short_factor": _numbers(short)}
        found = {"rope_scaling": {"rope_type": "longrope", **rope}}
        scaling.pop("attn_factor", None)  # follows from the lengths
        if original is not None:
            found["original_max_position_embeddings"] = original
    elif factors is not None:
        found = _read_llama3(_numbers(factors), config, problems)
    elif kind == "linear" and factor not in (0, 1):
        found = {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    elif kind == "yarn":
        more = {"factor": factor, "original_max_position_embeddings": original}
        found = {"rope_scaling": {"rope_type": "yarn", **more}}
    elif kind not in (*NO_SCALING, "linear"):
        problems.append(f"{prefix}type={kind!r} is not supported, only linear and yarn")
    problems += [f"{prefix}{name}={value!r} is not understood" for name, value in scaling.items()]
    return found


def _read_llama3(factors: list[float], config: Json, problems: list[str]) -> Json:
    """Finds the scaling of Llama 3 whose factors these are."""
    largest = max(factors, default=1.0)
    if largest == 1.0:
        return {}
    theta, head_dim = config.get("rope_theta", 10000.0), 2 * len(factors)
    expected = llama3_factors(theta, head_dim, largest)
    if not np.allclose(factors, expected, rtol=1e-5, atol=0):
        problems.append(
            f"{FACTORS} holds other factors than those of Llama 3 with factor {largest}, so the "
            "scaling of RoPE is unknown"
        )
        return {}
    return {"rope_scaling": {"rope_type": "llama3", "factor": float(largest), **LLAMA3}}


def llama3_factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """Returns what Llama 3 divides each frequency by (Llama 3 herd of models, 2024).

    Args:
        theta: the base of RoPE.
        head_dim: the size of a head; there are half as many frequencies.
        factor: of the lowest frequencies.
    """
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    share = (LLAMA3["original_max_position_embeddings"] / waves - low) / (high - low)
    share = np.clip(share, 0, 1)
    return 1 / ((1 - share) / factor + share)


def _numbers(tensor: QuantizedTensor) -> list[Any]:
    return [float(value) for value in tensor.read()]
