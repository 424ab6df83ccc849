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


# Instructions that change an array in place, and the operand that has what is written.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


def vector_traffic(module: Module) -> float:
    """Returns the bytes that one run reads and writes in HBM, matmuls and collectives aside.

    Counts operands and results of each instruction outside fusions. Of an array that is only sliced
    or updated in place, that part counts.
    """
    fused = _fused(module)
    total = 0.0
    for computation, instructions in module.computations.items():
        if computation in fused or not module.runs[computation]:
            continue
        sizes = {one.name: size(one) for one in instructions}
        for one in instructions:
            if not is_counted(one) or is_matmul(module, one):
                continue
            total += moved(module, one, sizes) * module.runs[computation]
    return total


def size(one: Instruction) -> float:
    """Returns the bytes of an instruction's outputs."""
    return sum(shape.size for shape in one.outputs)


def moved(module: Module, one: Instruction, sizes: dict[str, float]) -> float:
    """Returns the bytes that an instruction reads and writes."""
    reads, written = [sizes.get(name, 0.0) for name in one.operands], sizes[one.name]
    if one.op in ("dynamic-slice", "slice"):
        return 2 * written
    if one.op == "dynamic-update-slice":
        return 2 * reads[1]
    if one.op != "fusion":
        return written + sum(reads)
    body = module.computations[one.called[0]]
    inner = {each.name: size(each) for each in body}
    for each in body:
        if each.op == "parameter" and (part := _used_part(body, each.name)) is not None:
            place = int(each.rest.split(")")[0])
            reads[place] = min(reads[place], part)
        if each.op in _UPDATES and inner[each.name] <= written:
            written -= inner[each.name] - inner.get(each.operands[_UPDATES[each.op]], 0.0)
    return written + sum(reads)


def _used_part(body: list[Instruction], name: str) -> float | None:
    """Returns the bytes read of an array that is only sliced or updated in place; None: of all."""
    total = 0.0
    for user in body:
        if name not in user.operands:
            continue
        is_first = user.operands[0] == name
        part: float | None = None
        if user.op in ("bitcast", "reshape"):
            part = _used_part(body, user.name)
        elif user.op in ("dynamic-slice", "slice", "gather") and is_first:
            part = size(user)
        elif user.op in _UPDATES and is_first:
            part = 0.0
        if part is None:
            return None
        total += part
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


def is_counted(one: Instruction) -> bool:
    """Whether an instruction moves bytes itself."""
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
