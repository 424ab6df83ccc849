"""Agreement: processes that work together have the same config, data and versions."""

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from jaxllm.differences import differences
from jaxllm.errors import UserError

from .gather import gather_texts

PACKAGES = ("jaxllm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Settings of jax that change numbers.
SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")
MOST_LINES = 20


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compares the facts and the versions of all processes; all must call this at the same time.

    Args:
        facts: plain data that must be equal, such as the config of a run.

    Raises:
        UserError: they differ; names every difference from process 0.
    """
    own = json.dumps({**facts, "versions": versions()}, sort_keys=True)
    first, *others = map(json.loads, gather_texts(own))
    lines = [
        f"{name}: {ours!r} in process 0, {theirs!r} in process {rank}"
        for rank, other in enumerate(others, start=1)
        for name, ours, theirs in differences(first, other)
    ]
    if lines:
        more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        raise UserError(
            "\n".join(
                [
                    f"the {len(others) + 1} processes of this run differ; start all of them with "
                    "the same config, data and versions",
                    *lines[:MOST_LINES],
                    *more,
                ]
            )
        )


def versions() -> dict[str, str]:
    """Returns the versions of everything that computes numbers, and jax's settings about them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # such as jaxllm itself, run from a folder
            continue
    return found | {name: str(getattr(jax.config, name)) for name in SETTINGS}
