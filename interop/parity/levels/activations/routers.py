"""Routers: whether rounding decides which experts tokens are sent to."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxllm.interop.parity.alignment.activations import Tap, derive_taps
from jaxllm.interop.parity.alignment.calls import without_call
from jaxllm.interop.parity.alignment.inputs import Inputs, output_config
from jaxllm.interop.parity.alignment.layouts import Alignment
from jaxllm.interop.parity.alignment.router_flips import ROUTER, flips
from jaxllm.interop.parity.execution.distances import ELEMENT_FACTOR
from jaxllm.interop.parity.execution.jax_trace import trace_model
from jaxllm.interop.parity.levels.sides import Comparison
from jaxllm.interop.parity.recording.recording import Recording, record
from jaxllm.interop.parity.report.activation_rows import RouterFlips
from jaxllm.layers.experts.routing import choice_scores
from jaxllm.models import Model
from jaxllm.params import named_parameters

# The largest change of a token's scores if its logits change by 1.
SLOPES = {"sigmoid": 0.25, "softmax": 0.5}


def router_taps(comparison: Comparison, inputs: Inputs) -> list[Tap]:
    """Returns the taps of the routers alone."""
    taps = derive_taps(comparison.table, comparison.unstacked, inputs)
    return [tap for tap in taps if any(path.endswith(ROUTER) for path in tap.paths)]


def router_paths(recording: Recording) -> list[str]:
    """Returns the paths of the recorded routers."""
    return list(dict.fromkeys(map(without_call, recording.routers)))


def record_routers(comparison: Comparison, inputs: Inputs) -> Recording | None:
    """Records the router logits of the reference; None if it has no experts."""
    if output_config(comparison.model).experts is None:
        return None
    alignment = Alignment(router_taps(comparison, inputs))
    return record(comparison.reference, inputs, alignment, comparison.draws, is_fed=False)


def has_tie(recording: Recording | None, model: Model) -> bool:
    """Whether a token is sent to other experts than in the reference, as rounding may do.

    Args:
        recording: the router logits of the reference; None: there are no experts.
        model: the JAX model, its layers not stacked.
    """
    if recording is None:
        return False
    ours = trace_model(model, recording.inputs, router_paths(recording))
    return any(row.tokens and row.is_tie for row in router_flips(ours, recording, model))


def router_flips(
    ours: Mapping[str, np.ndarray], recording: Recording, model: Model
) -> Sequence[RouterFlips]:
    """Returns the routers that select other experts than the reference's.

    Args:
        ours: activations of the JAX model by path.
        recording: the recording of the reference.
        model: the JAX model.
    """
    experts = output_config(model).experts  # encoder and decoder have the same
    if experts is None:
        return ()
    parameters = named_parameters(model)
    is_direct = experts.groups is None and not experts.correction_bias

    def scores(path: str, logits_BTE: np.ndarray) -> np.ndarray:
        """Returns what the choice of experts goes by."""
        bias = parameters.get(without_call(path).removesuffix(ROUTER) + ".correction_bias")
        given = jnp.asarray(logits_BTE, jnp.float32), None if bias is None else bias.get_value()
        return logits_BTE if is_direct else np.asarray(choice_scores(experts, *given))

    unpadded = recording.unpadded
    others = {
        path: [
            scores(path, unpadded(path, logits) if recording.sample is None else logits)
            for logits in noisy
        ]
        for path, noisy in recording.routers.items()
        if path in ours
    }
    return flips(
        {path: scores(path, unpadded(path, ours[path])) for path in others},
        {path: scores(path, unpadded(path)) for path in others},
        others,
        # Sigmoids change by at most a quarter of what logits do, and softmax by half of it.
        {
            path: ELEMENT_FACTOR
            * recording.largest[path]
            * (1 if is_direct else SLOPES[experts.scores])
            for path in others
        },
        experts.top_k,
    )
