"""Where two implementations are compared: activations of the same meaning, in execution order.

A tap is a rule like those of the weights. On the left stands a module of the reference and the
dimensions of what it returns, on the right ours: so a family may split, merge or permute its
activations as it likes, and adding one is adding data.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.family import decoder_sizes, head_pairs
from jaxllm.interop.rules import Rule, Transfer

# The logits of both sides are taken from their outputs, since not every family has them as the
# output of a module. They go by the name of the module that makes them.
LOGITS = "lm_head"

Taps = Callable[[DecoderConfig], tuple[Rule, ...]]


def llama(config: DecoderConfig) -> tuple[Rule, ...]:
    """Each step of a Llama of Hugging Face."""
    layer, attn, pairs = "model.layers.{L}", "model.layers.{L}.self_attn", head_pairs(config)
    return (
        Rule("model.embed_tokens : B T D", "embed : B T D"),
        Rule(f"{layer}.input_layernorm : B T D", "layers.{L}.attn_norm : B T D"),
        Rule(f"{attn}.q_proj : B T (N r h)", f"layers.{{L}}.attn.q_proj : B T N {pairs}"),
        Rule(f"{attn}.k_proj : B T (K r h)", f"layers.{{L}}.attn.k_proj : B T K {pairs}"),
        Rule(f"{attn}.v_proj : B T (K H)", "layers.{L}.attn.v_proj : B T K H"),
        Rule(f"{attn} : B T D", "layers.{L}.attn : B T D"),
        Rule(f"{layer}.post_attention_layernorm : B T D", "layers.{L}.mlp_norm : B T D"),
        Rule(f"{layer}.mlp : B T D", "layers.{L}.mlp : B T D"),
        Rule(f"{layer} : B T D", "layers.{L} : B T D"),
        Rule("model.norm : B T D", "final_norm : B T D"),
    )


TAPS: dict[str, Taps] = {"llama": llama}  # by the reference's `model_type`


class Alignment:
    """The taps of one family at the sizes of one model and one batch of tokens."""

    def __init__(self, rules: Sequence[Rule], config: DecoderConfig, shape_BT: tuple[int, int]):
        batch_size, length = shape_BT
        self.sizes = {**decoder_sizes(config), "B": batch_size, "T": length}
        self.rules = tuple(rules)

    @property
    def paths(self) -> tuple[str, ...]:
        """Our names of the taps, in execution order."""
        return tuple(path for path, _, _ in self._steps())

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the reference whose outputs are needed."""
        return tuple(name for rule in self.rules for name, _ in rule.stored.names(self.sizes))

    def align(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The reference's module outputs under our names and in our layout."""
        for rule in self.rules:
            for name, _ in rule.stored.names(self.sizes):
                if (given := outputs[name].shape) != (ours := rule.stored.shape(self.sizes)):
                    raise ValueError(f"{name} of the reference is {given}, the model has {ours}")
        return {
            path: _assemble(transfer, index, outputs) for path, transfer, index in self._steps()
        }

    def _steps(self) -> Iterator[tuple[str, Transfer, Mapping[str, int]]]:
        """All taps in execution order: rules of the layers alternate, layer by layer."""
        for _, rules in itertools.groupby(self.rules, lambda rule: "L" in rule.model.name_axes):
            steps = [
                (path, rule.importing(self.sizes), index)
                for rule in rules
                for path, index in rule.model.names(self.sizes)
            ]
            yield from sorted(steps, key=lambda step: step[2].get("L", 0))


def _assemble(
    transfer: Transfer, index: Mapping[str, int], outputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    shape = transfer.target.shape(transfer.sizes)
    whole = np.empty(shape, np.float32)
    for piece in transfer.pieces(index, [(0, size) for size in shape]):
        transfer.copy(piece, outputs[piece.name], whole)
    return whole
