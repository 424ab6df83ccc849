"""Records what the recurrent layers of transformers' models compute: gated DeltaNet."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .overrides import attribute

# The function of a model's module that computes the delta rule of a whole sequence, and its
# arguments: (B, T, heads, elements), the last two without elements.
RULE = "torch_chunk_gated_delta_rule"
ARGUMENTS = {"query": "query", "key": "key", "value": "value", "g": "decay", "beta": "beta"}


@contextmanager
def record_delta_rules(module: Any, keep: Callable[[str, Any], Any]) -> Iterator[None]:
    """Records the inputs and the output of every delta rule: BTNH; and BTN of decay and beta.

    For the module `x` they are named `x@query`, `x@key`, `x@value`, `x@decay`, `x@beta` and
    `x@mixed`. Inputs are recorded with heads before tokens, as those of attention.
    """
    parts = {name: part for name, part in module.named_modules() if _has_rule(part)}
    running: list[str] = []

    def watch(rule: Callable) -> Callable:
        def watched(query: Any, key: Any, value: Any, **options: Any) -> Any:
            name = running[-1]
            given = {"query": query, "key": key, "value": value, **options}
            for argument, what in ARGUMENTS.items():
                kept = keep(f"{name}@{what}", given[argument].transpose(1, 2))
                given[argument] = kept.transpose(1, 2)
            mixed, *state = rule(**given)
            return keep(f"{name}@mixed", mixed), *state

        return watched

    with ExitStack() as stack:
        for name, part in parts.items():
            begin = part.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            end = part.register_forward_hook(lambda *_: running.pop() and None)
            stack.callback(begin.remove)
            stack.callback(end.remove)
        for owner in {sys.modules[type(part).__module__] for part in parts.values()}:
            stack.enter_context(attribute(owner, RULE, watch(getattr(owner, RULE))))
        yield


def _has_rule(part: Any) -> bool:
    """Whether the forward pass of a module calls the delta rule."""
    code = getattr(inspect.unwrap(type(part).forward), "__code__", None)
    return code is not None and RULE in code.co_names
