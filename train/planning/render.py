"""Plans as text."""

from collections.abc import Iterator

from .collectives import moved_by_axes
from .plan import Plan

GIB = 2**30


def render(plan: Plan, *, epochs: float | None = None) -> str:
    """Returns a plan as text, a figure a line.

    Args:
        plan: the plan.
        epochs: how often the run sees its data; None if that is not known.
    """
    lines = [*_heading(plan), *_memory(plan), *_network(plan), *_time(plan)]
    lines += str(plan.cost).splitlines()[:-1]  # the last line is of memory
    if epochs is not None:
        lines.append(f"epochs            {epochs:.3g}")
    return "\n".join(lines)


def fits(plan: Plan) -> str:
    """Says whether the step fits, or by how much it does not."""
    size = f"{abs(plan.spare) / GIB:.1f} GiB"
    total = f"{plan.topology.device.memory / GIB:.1f} GiB"
    if plan.spare < 0:
        return f"does not fit: {size} more than the {total} of each device"
    return f"fits: {size} of {total} stay free on each device"


def _heading(plan: Plan) -> Iterator[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    yield f"{plan.topology}, {mesh or 'one device'}, by the {plan.source}: {fits(plan)}"


def _memory(plan: Plan) -> Iterator[str]:
    parts = ("parameters", "gradients", "optimizer", "activations", "peak")
    values = ", ".join(f"{name} {getattr(plan, name) / GIB:.2f}" for name in parts)
    yield f"memory, GiB       {values}"


def _network(plan: Plan) -> Iterator[str]:
    if not plan.collectives:
        return
    least = sum(plan.minimum.values())
    ratio = f", {plan.moved / least:.2f} x of the minimum" if least else ""
    yield f"received          {plan.moved / 1e9:.1f} GB per device and step{ratio}"
    for axes, moved in moved_by_axes(plan.collectives).items():
        if moved < 1e-3 * plan.moved:
            continue
        kinds: dict[str, float] = {}
        for one in plan.collectives:
            if one.axes == axes:
                key = f"{one.kind} {one.dtype}"
                kinds[key] = kinds.get(key, 0.0) + one.moved
        named = sorted(kinds.items(), key=lambda item: -item[1])[:3]
        listed = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in named)
        least = plan.minimum.get(axes, 0.0)
        ratio = f" ({moved / least:.2f} x)" if least else ""
        yield f"  {' x '.join(axes):<16}{moved / 1e9:.1f} GB{ratio}: {listed}"


def _time(plan: Plan) -> Iterator[str]:
    factor = plan.executed_flops / plan.model_flops
    yield (
        f"compute per step  {plan.model_flops:.3g} FLOPs, {factor:.2f} x executed; "
        f"{plan.traffic / 1e9:.0f} GB of HBM per device beside matmuls"
    )
    overlapped, serial = plan.step_seconds, plan.serial_seconds
    rate = plan.step_tokens / overlapped
    yield (
        f"step              {overlapped:.3g} s ({plan.compute_seconds:.3g} s of computation, "
        f"{plan.network_seconds:.3g} s of collectives), {rate:,.0f} tokens/s"
    )
    yield (
        f"MFU               {plan.mfu(overlapped):.0%} if collectives overlap with computation, "
        f"{plan.mfu(serial):.0%} if they do not; matmuls at peak, the rest at HBM bandwidth"
    )
