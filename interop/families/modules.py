"""The rules of PyTorch's modules, for models whose heads are not rotated.

A name of the checkpoint comes first, then that of the model.
"""

from jaxllm.interop.rules import Rule


def linear_rules(theirs: str, ours: str, out: str, into: str, *, bias: bool = False) -> list[Rule]:
    """An `nn.Linear`. `out` and `into` are dimensions as PyTorch has them: "F", "(N H)"."""
    out_axes, in_axes = out.strip("()"), into.strip("()")
    rules = [Rule(f"{theirs}.weight : {out} {into}", f"{ours}.kernel : {in_axes} {out_axes}")]
    if bias:
        rules.append(Rule(f"{theirs}.bias : {out}", f"{ours}.bias : {out_axes}"))
    return rules


def attention_rules(
    theirs: str,
    ours: str,
    names: tuple[str, str, str, str],
    *,
    heads: str = "(N H)",
    bias: bool = False,
) -> list[Rule]:
    """The projections of queries, keys, values and outputs, with a key for each query."""
    rules = []
    for name, inner in zip(names, ("q_proj", "k_proj", "v_proj"), strict=False):
        rules += linear_rules(f"{theirs}.{name}", f"{ours}.{inner}", heads, "D", bias=bias)
    return [
        *rules,
        *linear_rules(f"{theirs}.{names[3]}", f"{ours}.o_proj", "D", heads, bias=bias),
    ]
