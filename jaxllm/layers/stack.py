"""Layers in order, with layers of the same kind stacked, scanned and compiled only once."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxllm.config import Remat

from .gather import gather_kernels
from .linear import ATTENDED, PROJECTION

STREAM = "stream"  # checkpoint name of the layers' inputs, which remat="offload" moves to the host


Kind = TypeVar("Kind", bound=Hashable)
# (layer, x, its cache and other inputs) -> (x, its new cache, other outputs)
Step = Callable[[Any, Array, Any], tuple[Array, Any, Any]]

REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTION),
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENDED),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[STREAM],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Run(NamedTuple):
    """A run of layers whose kinds repeat with a period, `repeats` times from layer `start` on.

    The layers `start + offset + period * i`, for all i < `repeats`, are of the same kind and are
    stacked in one array.
    """

    start: int
    period: int
    repeats: int

    @property
    def labels(self) -> list[str]:
        """Labels of the run's arrays: "5" for a single layer, a slice such as "0:32" if stacked."""
        start, period, repeats = self
        if repeats == 1:
            return [str(start + offset) for offset in range(period)]
        step = f":{period}" if period > 1 else ""
        stop = start + period * repeats
        return [f"{first}:{stop}{step}" for first in range(start, start + period)]


def find_runs(kinds: Sequence[Hashable], scan: bool) -> list[Run]:
    """Divides layers into runs, each of which repeats the same kinds.

    From left to right, chooses the period that covers the most layers, the shortest one if there
    are several. Without `scan`, all layers are one run that is repeated once.
    """
    if not scan:
        return [Run(0, len(kinds), 1)]
    found, start = [], 0
    while start < len(kinds):
        rest = kinds[start:]
        candidates = [Run(start, period, _repeats(rest, period)) for period in _periods(len(rest))]
        repeating = [run for run in candidates if run.repeats > 1] or [Run(start, 1, 1)]
        best = max(repeating, key=lambda run: (run.period * run.repeats, -run.period))
        found.append(best)
        start += best.period * best.repeats
    return found


def _periods(count: int) -> range:
    return range(1, count // 2 + 1)


def _repeats(kinds: Sequence[Hashable], period: int) -> int:
    repeats = 1
    while list(kinds[repeats * period : (repeats + 1) * period]) == list(kinds[:period]):
        repeats += 1
    return repeats


def layer_range(label: str) -> range:
    """Returns the layers under a label, such as "5", or "0:32" and "1:24:6" if stacked."""
    first, *rest = map(int, label.split(":"))
    return range(first, *rest) if rest else range(first, first + 1)


def layer_depths(label: str) -> Array:
    """Returns the depths, from 1 on, of the layers under a label: L of them, or one if single."""
    depths = jnp.array(layer_range(label), jnp.float32) + 1
    return depths if len(layer_range(label)) > 1 else depths[0]


def layer_labels(layers: nnx.Dict) -> list[str]:
    """Returns the labels of the layers. A dict that is being traced has other keys as well."""
    return [label for label in layers if label[0].isdigit()]


def make_layers(
    make: Callable[[Kind, Array], nnx.Module], kinds: Sequence[Kind], scan: bool, key: Array
) -> nnx.Dict:
    """Makes all layers.

    Args:
        make: makes one layer of a kind, with a random key.
        kinds: the kind of each layer.
        scan: whether to stack layers of the same kind along a leading L.
        key: random key, split over the layers.

    Returns:
        The layers by label.
    """
    keys = jax.random.split(key, len(kinds))
    layers = {}
    for run in find_runs(kinds, scan):
        for label in run.labels:
            positions = layer_range(label)
            kind, own = kinds[positions[0]], keys[positions.start : positions.stop : positions.step]
            build = lambda key, kind=kind: make(kind, key)  # noqa: E731
            layers[label] = jax.vmap(build)(own) if len(positions) > 1 else build(own[0])
    return nnx.Dict(layers)


def apply_layers(
    layers: nnx.Dict,
    step: Step,
    x_BTD: Array,
    caches: Mapping[str, Any] | None,
    remat: Remat,
    dtype: DTypeLike,
) -> tuple[Array, dict[str, Any] | None, dict[str, Any]]:
    """Runs `step` over the layers in order.

    Args:
        layers: from `make_layers`.
        step: runs one layer.
        x_BTD: the first layer's input.
        caches: the cache and other inputs of each layer, by label; None if there are none.
        remat: what the backward pass recomputes.
        dtype: of activations, in which kernels are gathered; `x_BTD` may be wider.

    Returns:
        The last layer's x, the new caches by label (None if no `caches` were given), and the
        other outputs by label.
    """
    written: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for run in _runs_of(layers):
        blocks = tuple(layers[label] for label in run.labels)
        given = None if caches is None else tuple(caches[label] for label in run.labels)
        apply = partial(_apply_period, step, remat, dtype, run.repeats > 1)
        if run.repeats > 1:
            x_BTD, (own, other) = jax.lax.scan(apply, x_BTD, (blocks, given))
        else:
            x_BTD, (own, other) = apply(x_BTD, (blocks, given))
        written.update(zip(run.labels, own, strict=True))
        others.update(zip(run.labels, other, strict=True))
    return x_BTD, None if caches is None else written, others


def _apply_period(
    step: Step, remat: Remat, dtype: DTypeLike, is_scanned: bool, x_BTD: Array, period: tuple
) -> tuple[Array, tuple[tuple, tuple]]:
    """Runs the layers of one period in order."""
    run = step
    if remat != "none":
        # The body of a scan is compiled separately, so CSE cannot undo the rematerialization there.
        run = jax.checkpoint(
            lambda block, x_BTD, given: step(
                gather_kernels(block, dtype), checkpoint_name(x_BTD, STREAM), given
            ),
            policy=REMAT_POLICIES[remat],
            prevent_cse=not is_scanned,
        )
    blocks, given = period
    written, others = [], []
    for i, block in enumerate(blocks):
        x_BTD, cache, other = run(block, x_BTD, None if given is None else given[i])
        written.append(cache)
        others.append(other)
    return x_BTD, (tuple(written), tuple(others))


def _runs_of(layers: nnx.Dict) -> list[Run]:
    """Recovers the runs from the labels."""
    found: list[Run] = []
    for positions in sorted(
        map(layer_range, layer_labels(layers)), key=lambda positions: positions.start
    ):
        if not found or positions.start >= found[-1].start + found[-1].period:
            found.append(Run(positions.start, positions.step, len(positions)))
    return found


def restack(layers: nnx.Dict, kinds: Sequence[Hashable], scan: bool) -> nnx.Dict:
    """Stacks the layers for a scan, or unstacks them; the weights stay the same.

    Unstacked layers decode faster, since each step of a scan slices every kernel.
    """
    wanted = [label for run in find_runs(kinds, scan) for label in run.labels]
    if set(wanted) == set(layer_labels(layers)):
        return layers
    single: dict[int, nnx.Module] = {}
    for label in layer_labels(layers):
        positions = layer_range(label)
        single.update(zip(positions, _split(layers[label], len(positions)), strict=True))
    return nnx.Dict({label: _join([single[i] for i in layer_range(label)]) for label in wanted})


def _split(block: nnx.Module, count: int) -> list[nnx.Module]:
    if count == 1:
        return [block]
    graphdef, stacked = nnx.split(block)
    return [nnx.merge(graphdef, state) for state in _layers(stacked, count)]


@partial(jax.jit, static_argnames="count")
def _layers(stacked: nnx.State, count: int) -> list[nnx.State]:
    return [_layer(stacked, i) for i in range(count)]


def _layer(stacked: nnx.State, i: int) -> nnx.State:
    return jax.tree.map(lambda x: x[i], stacked)


def _join(blocks: Sequence[nnx.Module]) -> nnx.Module:
    if len(blocks) == 1:
        return blocks[0]
    states = [nnx.state(block) for block in blocks]
    return nnx.merge(nnx.graphdef(blocks[0]), jax.tree.map(lambda *xs: jnp.stack(xs), *states))
