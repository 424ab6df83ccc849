"""Memory of a split program: which arrays a compiler keeps, and the most that live at once.

Elementwise operations, reductions and changes of layout are fused into what uses them. Arrays are
kept where a matmul, a collective, a loop or another operation that is not fused makes or needs
them. Operations run in the order of the traced program.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping

from .program import Op, Region, Value, local_bytes

# Operations that compilers do not fuse with their neighbours.
UNFUSED = {
    *("dot_general", "ragged_dot_general", "ragged_dot", "collective", "scan", "sort", "top_k"),
    *("conv_general_dilated", "scatter", "scatter-add", "scatter_add", "cumsum", "pallas_call"),
    *("dot_product_attention_fwd", "dot_product_attention_bwd", "custom_call", "ffi_call"),
    *("gather", "concatenate"),
}
# The operand that has the update of operations that change a part of an array in place.
IN_PLACE = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2, "scatter_add": 2}
VIEWS_AND_CASTS = {
    *("alias", "convert_element_type", "transpose", "reshape", "squeeze", "copy", "name"),
}


class Liveness:
    """Which values of a region are kept, how large each is, and when it is last used.

    Args:
        region: a split program or the body of a loop.
        mesh_shape: the size of each mesh axis.
        is_donated: whether the region's outputs take the place of its inputs.
    """

    def __init__(self, region: Region, mesh_shape: Mapping[str, int], *, is_donated: bool):
        self.region, self.mesh_shape = region, dict(mesh_shape)
        self.consumers: dict[int, list[int]] = defaultdict(list)
        for i, op in enumerate(region.ops):
            for value in op.inputs:
                self.consumers[id(value)].append(i)
        self.outputs = {id(value) for value in region.outputs}
        self.is_donated = is_donated
        self.inputs = {id(value) for value in region.inputs}
        self.sizes = self._sizes()
        self.last = self._last_uses()

    def _sizes(self) -> dict[int, float]:
        """Returns the bytes of each value that is kept."""
        sizes = {}
        for op in self.region.ops:
            for value in op.outputs:
                if value.is_free or (self.is_donated and id(value) in self.outputs):
                    continue
                size = local_bytes(value, self.mesh_shape)
                users = [self.region.ops[i] for i in self.consumers[id(value)]]
                if op.name in UNFUSED:
                    if len(users) == 1 and users[0].name == "convert_element_type":
                        to = users[0].outputs[0].dtype.itemsize
                        size *= min(1.0, to / value.dtype.itemsize)
                    sizes[id(value)] = size
                elif op.name in VIEWS_AND_CASTS and self._is_kept_elsewhere(op, sizes):
                    continue
                elif id(value) in self.outputs or any(user.name in UNFUSED for user in users):
                    sizes[id(value)] = size
        return sizes

    def _is_kept_elsewhere(self, op: Op, sizes: dict[int, float]) -> bool:
        """Whether a view's operand is kept, so that the view itself need not be."""
        source = op.inputs[0]
        return id(source) in sizes or id(source) in self.inputs

    def _last_uses(self) -> dict[int, int]:
        """Returns the last operation that needs each value, through what is fused."""
        last: dict[int, int] = {}
        for i in reversed(range(len(self.region.ops))):
            op = self.region.ops[i]
            ends = [i]
            for value in op.outputs:
                if id(value) not in self.sizes and id(value) in last:
                    ends.append(last[id(value)])  # recomputed where it is used
                if id(value) in self.outputs and id(value) not in self.sizes:
                    ends.append(i)
            for value in op.inputs:
                last[id(value)] = max(last.get(id(value), 0), *ends)
        for value in self.region.outputs:
            last[id(value)] = len(self.region.ops)
        return last

    def peak(self) -> tuple[float, Counter[str]]:
        """Returns the most bytes that live at once, beside the inputs, and what they are."""
        live = peak = 0.0
        held: dict[int, tuple[float, str]] = {}
        ends: dict[int, list[int]] = defaultdict(list)
        found: Counter[str] = Counter()
        for i, op in enumerate(self.region.ops):
            inner, parts = 0.0, Counter[str]()
            if op.body is not None:
                inner, parts = Liveness(op.body, self.mesh_shape, is_donated=False).peak()
            reused = self._reused(op, i, held)
            for value in op.outputs:
                size = self.sizes.get(id(value), 0.0)
                if not size or id(value) in held:
                    continue
                live += size
                held[id(value)] = size, describe(op, value)
                ends[self.last.get(id(value), i)].append(id(value))
            live -= reused
            if live + inner > peak:
                peak = live + inner
                found = Counter(parts)
                for size, what in held.values():
                    found[what] += round(size)
            for key in ends.pop(i, ()):
                live -= held.pop(key)[0]
        return peak, found

    def _reused(self, op: Op, i: int, held: dict[int, tuple[float, str]]) -> float:
        """Frees what a loop or an all-reduce updates in place; returns its bytes."""
        if op.name == "scan":
            first = op.params["num_consts"]
            taken = op.inputs[first : first + op.params["num_carry"]]
        elif op.params.get("kind") == "all-reduce":
            taken = op.inputs
        else:
            return 0.0
        freed = 0.0
        for value in taken:
            if id(value) in held and self.last.get(id(value)) == i:
                freed += held[id(value)][0]
                held[id(value)] = 0.0, held[id(value)][1]
        return freed


def describe(op: Op, value: Value) -> str:
    """Names an array for a list of what takes memory."""
    return f"{op.name} {value.dtype.name}{list(value.shape)}"


def vector_traffic(region: Region, mesh_shape: Mapping[str, int]) -> float:
    """Returns the bytes that one run reads and writes in HBM, matmuls and collectives aside.

    Each kept array is written once, unless an operation that is not fused makes it, and read once
    by what is fused with each of its uses. Of an update in place, the update is read and written.
    """
    kept = Liveness(region, mesh_shape, is_donated=False)
    total = 0.0
    for op in region.ops:
        if op.body is not None:
            total += op.params.get("length", 1) * vector_traffic(op.body, mesh_shape)
            continue
        if op.name in IN_PLACE:
            total += 2 * local_bytes(op.inputs[IN_PLACE[op.name]], dict(mesh_shape))
        for value in op.outputs:
            size = kept.sizes.get(id(value), 0.0)
            total += size * (op.name not in UNFUSED and op.name not in IN_PLACE)
            users = {region.ops[i].name for i in kept.consumers[id(value)]}
            total += size * bool(users - UNFUSED - VIEWS_AND_CASTS)
    return total
