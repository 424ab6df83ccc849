"""Architectures of GGUF files: their fields and tensors by the names of a Hugging Face family."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxllm.interop.families.common.fields import Json
from jaxllm.interop.formats.gguf.quantized_tensor import QuantizedTensor

Tensors = dict[str, QuantizedTensor]

# Fields of any architecture that say nothing which the tensors or other fields do not.
IMPLIED = ("vocab_size", "tensor_data_layout", "attention.causal", "use_parallel_residual")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a GGUF file writes a model of a Hugging Face type.

    Attributes:
        model_type: the Hugging Face type.
        fields: names in `config.json` by names in the file, without the architecture's name.
        names: names of tensors by names in the file, without `.weight` and `.bias`. `#` stands for
            the number of a layer and `@` for that of an expert.
        constants: fields of `config.json` that such a file leaves out, with their values.
        interleaved: tensors whose rows are heads with adjacent rotated pairs, not half a head
            apart, and the field with their number of heads.
        shifted: ends of names of the norm scales that are stored with 1 added.
        transposed: names of the matrices that Hugging Face stores transposed.
        complete: adds fields of `config.json` that follow from others.
        marker: name of a tensor that tells a variant from the usual models of its architecture.
    """

    model_type: str
    fields: Mapping[str, str]
    names: Mapping[str, str]
    constants: Json = dataclasses.field(default_factory=dict)
    interleaved: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shifted: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    complete: Callable[[Json], Json] = lambda config: {}
    marker: str = ""

    def read_fields(self, given: Json) -> Json:
        """Returns the fields of `config.json`; `given` loses those that are understood."""
        config: Json = dict(self.constants)
        for name, target in self.fields.items():
            if name in given:
                config[target] = given.pop(name)
        for name in IMPLIED:
            given.pop(name, None)
        return config | self.complete(config)

    def rename(self, tensors: Tensors, config: Json, problems: list[str]) -> Tensors:
        """Returns the tensors with the names and the layout of Hugging Face; collects problems."""
        found: Tensors = {}
        for name, tensor in tensors.items():
            stem, _, suffix = name.rpartition(".")
            pattern, numbers = _split_numbers(stem)
            target = self.names.get(pattern)
            if target is None or suffix not in ("weight", "bias"):
                problems.append(f"tensor {name} has no place in a {self.model_type} model")
                continue
            try:
                changed = self._in_layout(pattern, tensor, config)
            except ValueError as error:
                problems.append(str(error))
                continue
            for number in numbers:
                target = re.sub("[#@]", str(number), target, count=1)
            if "@" not in target:
                found[f"{target}.{suffix}"] = dataclasses.replace(
                    changed, name=f"{target}.{suffix}"
                )
                continue
            for expert in range(tensor.shape[0] if len(tensor.shape) > 1 else 0):
                one = f"{target.replace('@', str(expert))}.{suffix}"
                found[one] = changed.part(one, expert)
        return found

    def _in_layout(self, pattern: str, tensor: QuantizedTensor, config: Json) -> QuantizedTensor:
        if pattern in self.interleaved:
            # Files of models whose heads all have their own keys may leave out the number of those.
            heads = config.get(self.interleaved[pattern], config.get("num_attention_heads", 0))
            if not tensor.shape or heads < 1 or tensor.shape[0] % (2 * heads):
                raise ValueError(
                    f"tensor {tensor.name} of shape {list(tensor.shape)} is not divisible into "
                    f"{heads} heads of pairs"
                )
            return dataclasses.replace(tensor, head_dim=tensor.shape[0] // heads)
        if pattern.endswith(self.shifted):
            return dataclasses.replace(tensor, added=1.0)
        if pattern in self.transposed and len(tensor.shape) == 2:
            return tensor.transposed()
        return tensor


def _split_numbers(stem: str) -> tuple[str, list[int]]:
    """Splits the numbers of a layer and of an expert from a name: `blk.#.ffn_up.@`."""
    numbers = [int(number) for number in re.findall(r"(?<=\.)\d+(?=\.|$)", stem)]
    marks: Any = iter("#@")
    pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", lambda _: next(marks, "?"), stem)
    return pattern, numbers
