"""Adapters: how references of transformers and plain PyTorch modules are called and recorded."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from jaxllm.errors import UserError
from jaxllm.interop.families import FAMILIES, Family, variant_of
from jaxllm.interop.families.common.fields import Json

from .inputs import Inputs
from .references.overrides import attribute
from .references.peft_models import state_of
from .references.recurrences import record_delta_rules

if TYPE_CHECKING:
    from torch import Tensor

HEADS = ("query", "key", "value")
OUTPUTS = ("logits", "last_hidden_state")  # of models of transformers with and without a head
# Records an activation under a name and returns the value that the forward pass continues with.
Recorder = Callable[[str, Any], Any]
# Attribute of a user's module that holds its family and config fields; see `plain_modules`.
FAMILY_ATTRIBUTE = "jaxllm_own"


class ReferenceAdapter(Protocol):
    """The adapter of one kind of reference. Every method takes the reference module."""

    def fields(self, module: Any) -> Json:
        """Returns the contents of the reference's config file."""

    def family(self, module: Any) -> Family:
        """Returns the family whose checkpoints it reads. Raises UserError if there is none."""

    def masks(self, module: Any) -> Collection[str]:
        """Returns which of the masks in `Inputs` the reference takes."""

    def padding_token(self, module: Any) -> int | None:
        """Returns the padding token, which the reference treats specially; None: there is none."""

    def arguments(self, module: Any, given: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Returns positional and keyword arguments for tensors by the names of `Inputs`."""

    def plain_attention(self, module: Any) -> AbstractContextManager[Any]:
        """Switches to the attention implementation that exposes scores, if there is a choice."""

    def record_attention(self, module: Any, keep: Recorder) -> AbstractContextManager[Any]:
        """Records the inputs and the output of every attention: BNTH, BKSH twice, BTNH.

        For the attention module `x` they are named `x@query`, `x@key`, `x@value` and `x@mixed`.
        """


def adapter_of(module: Any) -> ReferenceAdapter:
    """Returns the adapter of a reference."""
    is_plain = hasattr(module, FAMILY_ATTRIBUTE) or not hasattr(module, "set_attn_implementation")
    return _PLAIN if is_plain else _TRANSFORMERS


def outputs_of(
    reference: Any, inputs: Inputs, params: Mapping[str, "Tensor"] | None = None
) -> "Tensor":
    """Runs the reference and returns its logits or vectors.

    Args:
        reference: the PyTorch module.
        inputs: its inputs.
        params: parameters by name to use instead of the module's own.
    """
    import torch

    device = next(reference.parameters()).device
    given = {name: torch.as_tensor(array, device=device) for name, array in inputs.arrays.items()}
    given = {n: x if x.is_floating_point() else x.long() for n, x in given.items()}
    arguments, options = adapter_of(reference).arguments(reference, given)
    out = torch.func.functional_call(reference, dict(params or {}), arguments, options)
    if isinstance(out, tuple):
        return out[0]
    return next((getattr(out, name) for name in OUTPUTS if hasattr(out, name)), out)


class _Transformers:
    """Models of transformers: language models, and models without a head."""

    def fields(self, module: Any) -> Json:
        return {**module.config.to_dict(), "architectures": [type(module).__name__]}

    def family(self, module: Any) -> Family:
        return variant_of(_known(module.config.model_type), state_of(module))

    def masks(self, module: Any) -> Collection[str]:
        return "source_mask", "target_mask"

    def padding_token(self, module: Any) -> int | None:
        return getattr(module.get_input_embeddings(), "padding_idx", None)

    def arguments(self, module: Any, given: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        first, *others = [name for name in ("source", "target") if name in given]
        names = {first: "input_ids", f"{first}_mask": "attention_mask"}
        for name in others:
            names |= {name: "decoder_input_ids", f"{name}_mask": "decoder_attention_mask"}
        options = {names[name]: given[name] for name in names if name in given}
        return (), {**options, "use_cache": False}

    @contextmanager
    def plain_attention(self, module: Any) -> Iterator[None]:
        before = module.config._attn_implementation
        module.set_attn_implementation("eager")
        try:
            yield
        finally:
            module.set_attn_implementation(before)

    @contextmanager
    def record_attention(self, module: Any, keep: Recorder) -> Iterator[None]:
        from transformers.modeling_utils import AttentionInterface

        names = {id(part): name for name, part in module.named_modules()}
        chosen = AttentionInterface.get_interface

        def get_interface(self: Any, implementation: str, default: Callable) -> Callable:
            attend = chosen(self, implementation, default)

            def watched(
                part: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any
            ) -> Any:
                name = names[id(part)]
                heads = zip(HEADS, (query, key, value), strict=True)
                kept = [keep(f"{name}@{what}", tensor) for what, tensor in heads]
                return keep(f"{name}@mixed", attend(part, *kept, *args, **options))

            return watched

        own = attribute(AttentionInterface, "get_interface", get_interface)
        with own, record_delta_rules(module, keep):
            yield


class _Plain:
    """Plain PyTorch modules: those of `interop.reference`, and a user's module with rules."""

    def fields(self, module: Any) -> Json:
        _, fields = getattr(module, FAMILY_ATTRIBUTE, (None, None))
        return module.fields if fields is None else fields

    def family(self, module: Any) -> Family:
        if hasattr(module, FAMILY_ATTRIBUTE):
            return getattr(module, FAMILY_ATTRIBUTE)[0]
        if not isinstance(getattr(module, "fields", None), dict):
            raise UserError(
                f"the reference is a {type(module).__name__}, which is neither a model of "
                "transformers nor of a known family: give its conversion rules as rules="
            )
        return _known(module.fields.get("model_type"))

    def masks(self, module: Any) -> Collection[str]:
        return self.family(module).masks

    def padding_token(self, module: Any) -> int | None:
        return getattr(module, "pad_idx", None)

    def arguments(self, module: Any, given: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return self.family(module).arguments(module, given), {}

    def plain_attention(self, module: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    @contextmanager
    def record_attention(self, module: Any, keep: Recorder) -> Iterator[None]:
        from jaxllm.interop.reference.attention import Attend

        names = {part: n.rpartition(".")[0] for n, part in module.named_modules()}

        def watch_given(part: Any, args: tuple) -> tuple:
            heads = [(f"{names[part]}@{what}", x) for what, x in zip(HEADS, args, strict=False)]
            kept = [keep(name, x.transpose(1, 2)).transpose(1, 2) for name, x in heads]
            return (*kept, *args[len(kept) :])

        def watch_returned(part: Any, args: tuple, returned: Any) -> Any:
            return keep(f"{names[part]}@mixed", returned)

        with ExitStack() as stack:
            for part in names:
                if isinstance(part, Attend):
                    stack.callback(part.register_forward_pre_hook(watch_given).remove)
                    stack.callback(part.register_forward_hook(watch_returned).remove)
            yield


_TRANSFORMERS, _PLAIN = _Transformers(), _Plain()


def _known(model_type: Any) -> Family:
    """Returns the family of this `model_type`. Raises UserError if there is none."""
    known: dict[str, Family] = {}
    for family in FAMILIES:
        if family.model_type is not None:
            known.setdefault(family.model_type, family)
    if model_type not in known:
        raise UserError(
            f"model_type={model_type!r} of the reference is not a known family; known are "
            f"{', '.join(known)}"
        )
    return known[model_type]
