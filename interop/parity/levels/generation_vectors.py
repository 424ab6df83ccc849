"""Generation level for models of vectors: each new vector is the output at the last position."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.interop.parity.alignment.adapters import outputs_of
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.execution.distances import Distances, measure
from jaxllm.interop.parity.execution.jax_trace import PRECISION, call
from jaxllm.interop.parity.execution.simulated_rounding import DRAWS
from jaxllm.interop.parity.execution.torch_trace import prepared
from jaxllm.interop.parity.progress import announce
from jaxllm.interop.parity.report.rows import ScoresResult
from jaxllm.models import Model
from jaxllm.numerics.distance import difference, norm
from jaxllm.sharding import to_host

from .sides import Comparison

PROMPT_LENGTH = 24
NEW_VECTORS = 8
VECTORS = "vectors"  # their name among `Distances`


class Continued(NamedTuple):
    """The reference's continuation of a prompt: N new vectors of each row."""

    prompt: Inputs
    vectors_BNO: np.ndarray
    distances: Distances  # rounding errors of the vectors


def compare_vectors(comparison: Comparison) -> list[ScoresResult]:
    """Compares both sides' continuations of the first vectors of the inputs."""
    run = functools.partial(
        continue_vectors, comparison.reference, comparison.inputs, comparison.draws
    )
    theirs = comparison.of_reference(run, "vectors", comparison.inputs.digest)
    return judge_vectors(comparison.model, theirs)


def continue_vectors(reference: Any, inputs: Inputs, draws: int = DRAWS) -> Continued:
    """Continues the first vectors of the inputs with the reference.

    If outputs have another width than inputs, there is only one new vector.
    """
    prompt = dataclasses.replace(inputs, target=inputs.target[:, :PROMPT_LENGTH], labels=None)
    is_loop = inputs.labels is None or inputs.labels.shape[-1] == inputs.target.shape[-1]
    count = NEW_VECTORS if is_loop else 1

    def run() -> np.ndarray:
        with prepared(reference):
            return _continued(_theirs(reference), prompt, count)

    announce("generation: reference")
    theirs = run()

    def depart() -> dict[str, np.ndarray]:
        return {VECTORS: (run() - theirs).astype(np.float32)}

    distances = measure("generation", depart, draws=draws)
    return Continued(prompt, theirs, distances)


def judge_vectors(model: Model, theirs: Continued) -> list[ScoresResult]:
    """Continues the reference's prompt with the JAX model and compares the new vectors."""
    announce("generation: model")
    with jax.default_matmul_precision(PRECISION):
        ours = _continued(_ours(model), theirs.prompt, theirs.vectors_BNO.shape[1])
    departure, size = difference(ours, theirs.vectors_BNO), norm(theirs.vectors_BNO)
    error = theirs.distances.judge(VECTORS, departure, size)
    return [ScoresResult("generate.vectors", error)]


def _continued(last: Callable[[Inputs, int], np.ndarray], prompt: Inputs, count: int) -> np.ndarray:
    """Generates `count` vectors, BNO.

    `last(inputs, room)` returns the output at the last position, BO; `room` more will be appended.
    """
    new: list[np.ndarray] = []
    while len(new) < count:
        grown = np.concatenate([prompt.target, *(vector[:, None] for vector in new)], axis=1)
        room = count - len(new) - 1
        new.append(last(dataclasses.replace(prompt, target=grown), room))
    return np.stack(new, axis=1)


def _theirs(reference: Any) -> Callable[[Inputs, int], np.ndarray]:
    import torch

    def last(inputs: Inputs, room: int) -> np.ndarray:
        with torch.no_grad():
            return outputs_of(reference, inputs)[:, -1].float().cpu().numpy()

    return last


def _ours(model: Model) -> Callable[[Inputs, int], np.ndarray]:
    """Returns the function that runs the model on inputs padded to one length: it compiles once."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, given: dict[str, jax.Array]) -> jax.Array:
        return call(nnx.merge(graphdef, state), given).logits

    def last(inputs: Inputs, room: int) -> np.ndarray:
        B, T = inputs.target.shape[:2]
        padded = np.pad(inputs.target, ((0, 0), (0, room), (0, 0)))
        mask = np.broadcast_to(np.arange(T + room) < T, (B, T + room)).astype(np.int32)
        whole = dataclasses.replace(inputs, target=padded, target_mask=mask)
        given = {name: jnp.asarray(array) for name, array in whole.arrays.items()}
        return to_host(run(state, given))[:, T - 1]

    return last
