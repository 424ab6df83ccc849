"""FLOPs that a training step needs, by the model's shapes alone: the numerator of MFU."""

from jaxllm.config import Config, StackConfig, TwoStackConfig
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters
from jaxllm.train.config import TrainConfig
from jaxllm.train.cost import active_size


def step_flops(config: TrainConfig, model: Config) -> float:
    """Returns the FLOPs of one step over all devices (Chowdhery et al., 2022, appendix B).

    6 for each pair of a token and a parameter that multiplies it: tables that are only looked up
    do not count, and of an MoE layer's experts the `top_k` chosen ones. 12 H for each head and each
    pair of a query and a key that it sees. What is recomputed does not count.
    """
    tokens = config.batch_size * config.seq_len
    named = named_parameters(build_abstract(model))
    has_head = any(name.endswith("lm_head.kernel") for name in named)
    multiplied = sum(
        active_size(model, name, variable)
        for name, variable in named.items()
        if name.endswith("kernel") or (name.endswith("embed.embedding") and not has_head)
    )
    return 6.0 * tokens * multiplied + config.batch_size * attention_flops(model, config.seq_len)


def attention_flops(model: Config, length: int) -> float:
    """Returns the FLOPs of scores and values of one sequence, forward and backward."""
    if isinstance(model, TwoStackConfig):
        return _stack_flops(model.encoder, length) + _stack_flops(model.decoder, length)
    return _stack_flops(model, length)


def _stack_flops(stack: StackConfig, length: int) -> float:
    each = 12.0 * stack.num_heads * stack.head_dim
    pairs = sum(visible_pairs(stack, kind.attention, length) for kind in stack.kinds)
    if stack.attention.cross:
        pairs += stack.num_layers * length**2
    return each * pairs


def visible_pairs(stack: StackConfig, attention: str, length: int) -> int:
    """Returns the pairs of a query and a key that it sees in a layer, for one sequence."""
    if not stack.attention.causal:
        return length**2
    reach = {"window": stack.attention.window, "chunk": stack.attention.chunk}.get(attention)
    if reach is None or reach >= length:
        return length * (length + 1) // 2
    if attention == "window":
        return reach * (reach + 1) // 2 + (length - reach) * reach
    whole, rest = divmod(length, reach)
    return whole * (reach * (reach + 1) // 2) + rest * (rest + 1) // 2
