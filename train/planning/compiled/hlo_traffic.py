"""HBM traffic of a compiled program, at the level of fusions."""

from functools import cache

from .hlo import Instruction, Module

_MATMULS = {"dot", "convolution", "ragged-dot"}
_KERNELS = ("__cublas", "__cudnn", "triton_gemm", "tpu_custom_call", "mosaic")
# Instructions that move nothing themselves, or whose transfer is counted elsewhere.
_FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
    *("constant", "after-all", "opt-barrier", "copy-start", "copy-done", "async-start"),
    *("async-update", "partition-id", "iota", "add-dependency"),
}


def vector_traffic(module: Module) -> float:
    """Returns the bytes that one run reads and writes in HBM, matmuls and collectives aside.

    Counts operands and results of each instruction outside fusions; an update in place counts
    what it changes.
    """
    fused = _fused(module)
    total = 0.0
    for computation, instructions in module.computations.items():
        if computation in fused or not module.runs[computation]:
            continue
        sizes = {one.name: sum(shape.size for shape in one.outputs) for one in instructions}
        for one in instructions:
            if not _is_counted(one) or is_matmul(module, one):
                continue
            reads = [sizes.get(name, 0.0) for name in one.operands]
            moved = sizes[one.name] + sum(reads)
            if "dynamic-update-slice" in f"{one.op} {one.name}" or one.op == "dynamic-slice":
                changed = [size for size in (sizes[one.name], *reads) if size > 64]
                moved = 2 * min(changed, default=0.0)  # offsets are no part of it
            total += moved * module.runs[computation]
    return total


def _fused(module: Module) -> set[str]:
    """Returns the computations whose instructions are part of others, such as fusions."""
    return {
        name
        for instructions in module.computations.values()
        for one in instructions
        if one.op not in ("while", "conditional", "call")
        for name in one.called
    }


def _is_counted(one: Instruction) -> bool:
    is_async = one.op.endswith(("-start", "-done"))
    return one.op not in _FREE and not is_async and not one.op.startswith(("all-", "collective"))


def is_matmul(module: Module, one: Instruction) -> bool:
    """Whether an instruction is a matmul or a kernel, perhaps with others fused to it."""

    @cache
    def has_matmul(name: str) -> bool:
        return any(
            inner.op in _MATMULS or any(map(has_matmul, inner.called))
            for inner in module.computations.get(name, ())
        )

    if one.op == "custom-call":
        return any(name in one.rest for name in _KERNELS)
    return one.op in _MATMULS or any(map(has_matmul, one.called))


def largest_arrays(module: Module, most: int = 8) -> list[tuple[str, float, str]]:
    """Returns the largest arrays that instructions make: shape, bytes and where they come from."""
    found: dict[tuple[str, str], float] = {}
    fused = _fused(module)
    for computation, one, _ in module.instructions():
        if computation in fused or one.op in _FREE or one.shape.startswith("("):
            continue
        for shape in one.outputs[:1]:
            text = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
            found[text, one.scope[-120:]] = shape.size
    ranked = sorted(found.items(), key=lambda item: -item[1])[:most]
    return [(text, size, scope) for (text, scope), size in ranked]
