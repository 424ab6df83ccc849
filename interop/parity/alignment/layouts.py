"""Layouts: brings the reference's outputs into the layout of the JAX model."""

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.parity.memory.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.numerics.attention_scores import SCORES, seen_only
from jaxllm.interop.rules.binding import leading_index
from jaxllm.interop.rules.transfer import Transfer

from .activations import Tap
from .calls import calls_of, of_call


class Alignment:
    """The taps of a comparison; maps the reference's outputs to JAX paths and layouts."""

    def __init__(self, taps: Sequence[Tap]):
        self.taps = list(taps)

    @property
    def modules(self) -> list[str]:
        """The modules of the reference whose outputs are needed."""
        return list(dict.fromkeys(name.partition("@")[0] for name in self.names))

    @property
    def digest(self) -> str:
        """A text that is the same for alignments that do the same."""
        return sha256(repr([(tap.rule, tap.sizes) for tap in self.taps]).encode()).hexdigest()

    @property
    def names(self) -> list[str]:
        """Names of the outputs to record: modules, and inside attention `module@query`, ..."""
        return list(dict.fromkeys(name for tap in self.taps for name in tap.modules))

    def align(
        self,
        outputs: Mapping[str, np.ndarray],
        store: ArrayStore = in_memory,
        *,
        are_differences: bool = False,
    ) -> dict[str, np.ndarray]:
        """Returns the reference's outputs by JAX path, in JAX layout and in execution order.

        Activations that the reference did not record are left out; see `left_out`.

        Args:
            outputs: the reference's outputs by the names in `names`, in execution order; those of
                later calls of a module by the names of `calls`.
            store: the store for the returned arrays.
            are_differences: whether the outputs are differences of two runs, so that scores of
                masked keys are not recognized.

        Raises:
            UserError: the shape of an output is not that of the JAX model.
        """
        order = {name: place for place, name in enumerate(outputs)}
        calls = {id(tap): tap.calls(outputs) for tap in self.taps}
        found: list[tuple[int, str, np.ndarray]] = []
        for number in range(max(map(len, calls.values()), default=0)):
            shown = [tap for tap in self.taps if len(calls[id(tap)]) > number]
            names = {n: key for tap in shown for n, key in calls[id(tap)][number].items()}
            parts = _split_fused(shown, {name: outputs[key] for name, key in names.items()})
            for tap in shown:
                place = max(order[names[module]] for module in tap.modules)
                for path, index in tap.rule.model.names(tap.sizes):
                    array = _assemble(tap.importing, index, parts)
                    is_masked = path.endswith(f".{SCORES}") and not are_differences
                    kept = store(seen_only(array) if is_masked else array)
                    found.append((place, of_call(path, number), kept))
        return {path: array for _, path, array in sorted(found, key=lambda one: one[0])}

    def left_out(self, outputs: Mapping[str, np.ndarray]) -> list[str]:
        """Returns the JAX paths of the activations that `align` leaves out, in whole or in part."""
        found = []
        for tap in self.taps:
            calls = len(tap.calls(outputs))
            most = max((len(calls_of(module, outputs)) for module in tap.modules), default=0)
            is_inside = any("@" in module for module in tap.modules)
            if calls == most or (calls and is_inside):  # softmax of something else
                found += [] if calls else tap.paths
            else:
                part = f" ({most - calls} of {most} calls)" if calls else ""
                found += [path + part for path in tap.paths]
        return found


def _split_fused(taps: Sequence[Tap], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the outputs by the names of the rules; splits fused ones along the last dimension."""
    parts: dict[str, np.ndarray] = {}
    used: dict[str, int] = {}
    named = [(name, tap) for tap in taps for name, _ in tap.rule.stored.names(tap.sizes)]
    # Parts that begin with an index go by that first, as in `fused_parts`.
    for name, tap in sorted(named, key=lambda one: leading_index(one[0])):
        module, is_part, _ = name.partition("#")
        if module not in outputs:
            continue
        shape = tap.rule.stored.shape(tap.sizes)
        output = outputs[module]
        if is_part:
            start = used.get(module, 0)
            used[module] = start + shape[-1]
            output = output[..., start : used[module]]
        if output.size != int(np.prod(shape)) or output.shape[-1] != shape[-1]:
            raise UserError(
                f"the output of {name} has shape {output.shape} in the reference, {shape} in "
                "the model"
            )
        parts[name] = output.reshape(shape)
    return parts


def _assemble(
    transfer: Transfer, index: Mapping[str, int], outputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    shape = transfer.target.shape(transfer.sizes)
    pieces = list(transfer.pieces(index, [(0, size) for size in shape]))
    if len(pieces) == 1 and transfer.source.array_axes == transfer.target.array_axes:
        whole = outputs[pieces[0].name]
        if whole.size == math.prod(shape):  # laid out as in the model
            return whole.reshape(shape)
    whole = np.empty(shape, np.float32)
    for piece in pieces:
        transfer.copy(piece, outputs[piece.name], whole)
    return whole
