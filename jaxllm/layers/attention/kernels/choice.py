"""Which implementation computes self-attention: one table, by backend and by what is asked for."""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
from jax import Array

from jaxllm.config import AttentionKernel
from jaxllm.errors import UserError
from jaxllm.sharding import platform

from .call import Apply

log = logging.getLogger("jaxllm")


def _splash() -> Callable[..., Array]:
    from .splash import splash_attention  # Pallas takes long to import

    return splash_attention


def _triton() -> Callable[..., Array]:
    from .triton import triton_attention

    return triton_attention


class Implementation(NamedTuple):
    """A kernel and the platform that it is written for."""

    platform: str
    load: Callable[[], Callable[..., Array]]


KERNELS: dict[AttentionKernel, Implementation] = {
    "splash": Implementation("tpu", _splash),
    "triton": Implementation("gpu", _triton),
}


def choose_kernel(
    kernel: AttentionKernel, dtype: jax.typing.DTypeLike, *, has_bias: bool
) -> Apply | None:
    """Returns the kernel that computes self-attention; None: blocks of queries.

    "auto" takes the kernel of the platform, unless what is asked for is missing in it: that is
    logged once. A kernel that is named runs on a CPU too, interpreted.

    Args:
        kernel: the name of one, "auto" or "blocks".
        dtype: of the queries.
        has_bias: whether a bias is added to the scores.

    Raises:
        UserError: the named kernel is for another platform, or lacks what is asked for.
    """
    here = platform()
    if kernel == "blocks":
        return None
    if kernel == "auto":
        found = next((name for name, each in KERNELS.items() if each.platform == here), None)
        if found is None:
            return None
        missing = _missing(has_bias=has_bias)
        if missing is None and jax.numpy.dtype(dtype).itemsize > 2:
            missing = "float32 products"
        if missing:
            _say_once(f"attention in blocks of queries: kernel {found} lacks {missing}")
            return None
        kernel = found
    elif missing := _missing(has_bias=has_bias):
        raise UserError(
            f"attention.kernel={kernel!r} lacks {missing}; set it to 'auto' or 'blocks'"
        )
    if here not in (KERNELS[kernel].platform, "cpu"):
        raise UserError(
            f"attention.kernel={kernel!r} is for {KERNELS[kernel].platform.upper()}s, but the "
            f"devices are {here.upper()}s; set it to 'auto'"
        )
    return partial(KERNELS[kernel].load(), interpret=here == "cpu")


def _missing(*, has_bias: bool) -> str | None:
    return "a bias of the scores" if has_bias else None


@cache
def _say_once(message: str) -> None:
    log.info("%s", message)
