"""JAX functions of users as models: they offer what the levels of a comparison need from one."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.checkpoint_origin import Origin
from jaxllm.config import AttentionConfig, NumericsConfig
from jaxllm.errors import UserError
from jaxllm.interop.families import RuleTable
from jaxllm.interop.families.common.family import in_order
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.parity.numerics.precision import PRECISIONS, computed_in
from jaxllm.interop.parity.report.activation_rows import LOGITS
from jaxllm.interop.pytrees.fitting import fit_rules
from jaxllm.interop.pytrees.leaves import NamedLeaves, is_abstract
from jaxllm.interop.pytrees.tree_rules import TreeRules, read_tree_rules
from jaxllm.interop.rules.rule import Rule
from jaxllm.layers.hooks import HOOK
from jaxllm.models import Output
from jaxllm.params import named_parameters

from .adapters import FAMILY_ATTRIBUTE
from .references.overrides import attribute
from .user_taps import taps_to

# Axes of activations that no weight has.
OF_INPUTS = ("B", "T", "keys")


@dataclasses.dataclass(frozen=True)
class JaxFunction:
    """A JAX function, its parameters and their rules, to be compared with a PyTorch module.

    Attributes:
        apply: a function of the parameters and tokens, BT, that returns logits, BTV. It may be
            jitted. Padding is at the end of rows, where a causal model does not attend to it.
        params: any pytree, such as Linen variables or an Equinox module.
        rules: as for `jaxllm.interop.load_into`; with `arguments` and `masks` for modules that
            are called with more than the tokens.
        taps: a rule for each activation to compare. Its left side names a module of the reference
            and the dimensions of its output, its right side is the name given to `tap`, as in
            `Rule("model.layers.{L} : B T D", "layers.{L} : B T D")`.
    """

    apply: Callable[[Any, Array], Array]
    params: Any
    rules: Any
    taps: Sequence[Rule] = ()


@dataclasses.dataclass(frozen=True)
class FunctionConfig:
    """The config of a function: its vocabulary and dtype, found without running it.

    Attributes:
        vocab_size: the number of logits, and of tokens to draw.
        numerics: the dtype that it computes in: that of its parameters.
    """

    vocab_size: int
    numerics: NumericsConfig
    attention: AttentionConfig = AttentionConfig()
    max_len: int | None = None
    longest: int = 2**31 - 1
    experts: None = None


class FunctionModel(nnx.Module):
    """A function as a model, whose parameters are the leaves that its rules name.

    Args:
        function: the function.
        reference: the PyTorch module, whose tensors help to find the sizes of axes.
        tokens: BT.

    Raises:
        CheckpointError: the rules do not fit the parameters. Lists every problem.
        UserError: the logits are not BTV, or a tap names an axis of unknown size.
    """

    config: FunctionConfig
    parts: "_Parts"
    origin: Origin | None = None

    def __init__(self, function: JaxFunction, reference: Any, tokens: Any):
        leaves, rules = NamedLeaves.of(function.params), read_tree_rules(function.rules)
        shapes = {name: tuple(x.shape) for name, x in reference.state_dict().items()}
        fit = fit_rules(leaves, rules, shapes)
        trained = {name: x for name, x in leaves.arrays.items() if not rules.keeps(name)}
        if problems := [*fit.problems, *_unusable(trained)]:
            raise CheckpointError(problems, "the parameters of the function")
        decayed = {
            name
            for rule in fit.rules
            if len(rule.rule.stored.dims) > 1
            for name, _ in rule.rule.model.names(rule.sizes)
        }
        self.parts = _Parts(function, leaves, rules, fit.table, frozenset(decayed))
        self.config = FunctionConfig(_count_logits(function, tokens), _numerics(trained))
        _check_taps(function.taps, fit.table)
        for name, array in trained.items():
            # The whole name in one attribute: it is the parameter's path, too.
            setattr(self, name, nnx.Param(array))

    def __call__(self, tokens_BT: Array, segment_ids: Array | None = None) -> Output:
        """Returns the logits of the function.

        Args:
            tokens_BT: the tokens.
            segment_ids: BT, 0 at padding, which the function is not told about.
        """
        own: Any = self  # of no type of jaxllm's models
        arrays = {name: variable.get_value() for name, variable in named_parameters(own).items()}
        hook = getattr(self, HOOK, None)
        with nullcontext() if hook is None else taps_to(hook):
            logits = self.parts.function.apply(self.parts.leaves.replaced(arrays), tokens_BT)
        return Output(logits.astype(jnp.float32), None, jnp.zeros(()))

    def restacked(self, scan: bool) -> Self:
        """Returns the model itself: its rules name the layers as the tree has them."""
        return self

    def calling(self, reference: Any) -> AbstractContextManager[Any]:
        """Within this context, the reference is called as the rules say, if they say something."""
        rules = self.parts.rules
        is_known = hasattr(reference, "set_attn_implementation") and rules.arguments is in_order
        if is_known:
            return nullcontext()
        return attribute(reference, FAMILY_ATTRIBUTE, (rules, {}))


RESERVED = {*FunctionModel.__annotations__, HOOK}  # names that no parameter can have


class _Parts:
    """Parts of a function that are no arrays of the model: one attribute, equal only to itself."""

    def __init__(
        self,
        function: JaxFunction,
        leaves: NamedLeaves,
        rules: TreeRules,
        table: RuleTable,
        decayed: frozenset[str],
    ):
        self.function, self.leaves, self.rules = function, leaves, rules
        self.table, self.decayed = table, decayed


def _unusable(arrays: dict[str, Any]) -> Iterator[str]:
    for name, array in arrays.items():
        if is_abstract(array):
            yield f"{name} is only a shape and a dtype"
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            yield f"{name} is {array.dtype}, which is not trained: name it in kept"
        elif name in RESERVED or hasattr(FunctionModel, name):
            yield f"{name} is a reserved name: put the parameters into a dict"


def _numerics(arrays: dict[str, Any]) -> NumericsConfig:
    found = {array.dtype.name for array in arrays.values()}
    precision = computed_in(found)
    if precision is None:
        raise UserError(
            f"the parameters of the function are {', '.join(sorted(found)) or 'missing'}; they "
            f"must be in one dtype of {', '.join(PRECISIONS)}"
        )
    return NumericsConfig(param_dtype=precision.dtype, dtype=precision.dtype)


def _count_logits(function: JaxFunction, tokens: Any) -> int:
    """Returns the number of logits. Raises UserError if there are not some for every token."""
    if tokens.ndim != 2:
        raise UserError(f"a function takes tokens (B, T), but the inputs are {tokens.shape}")
    given = jax.ShapeDtypeStruct(tokens.shape, jnp.int32)
    logits = jax.eval_shape(lambda tokens_BT: function.apply(function.params, tokens_BT), given)
    if len(getattr(logits, "shape", ())) != 3 or logits.shape[:2] != tokens.shape:
        raise UserError(
            f"for tokens {tokens.shape} the function returns {logits}; it must return logits, "
            "one array of shape (batch, position, vocabulary)"
        )
    return int(logits.shape[-1])


def _check_taps(taps: Sequence[Rule], table: RuleTable) -> None:
    problems = []
    for rule in taps:
        if unknown := [a for a in rule.stored.axes if a not in {*OF_INPUTS, *table.sizes}]:
            problems.append(f"{rule}: {' and '.join(unknown)} has no size: give it in sizes")
        if rule.model.name == LOGITS:
            problems.append(f"{rule}: {LOGITS} are always compared: remove this tap")
    if problems:
        raise UserError("\n".join(["taps:", *problems]))
